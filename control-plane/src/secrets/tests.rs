use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use merlon_compile::Compiler;
use merlon_config::load::load_texts;
use tokio::time::{Instant, timeout};

use super::*;

/// A mesh in which `namespace/name=path` are granted, each namespace's to its workload `web`.
fn mesh(grants: &[&str]) -> Arc<Mesh> {
    let mut text = "
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: x.test }
"
    .to_owned();
    let mut namespaces = BTreeSet::new();
    for grant in grants {
        let (name, path) = grant.split_once('=').unwrap();
        let (namespace, name) = name.split_once('/').unwrap();
        if namespaces.insert(namespace) {
            text.push_str(&format!(
                "---\napiVersion: merlon.io/v1alpha1\nkind: Workload\nmetadata: {{ name: web, namespace: {namespace} }}\n\
                 spec: {{ serviceAccount: web, meshAddress: \"127.0.0.1:{}\" }}\n",
                7_000 + namespaces.len()
            ));
        }
        text.push_str(&format!(
            "---\napiVersion: merlon.io/v1alpha1\nkind: SecretGrant\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
             spec: {{ serviceAccount: web, path: {path}, files: {{}} }}\n"
        ));
    }
    let resources = load_texts([("mesh.yaml", text)]).unwrap_or_else(|report| panic!("{report}"));
    Compiler::new().compile(&resources).unwrap()
}

/// A Vault that does not answer for paths that begin with `hangs`, rejects `refused`, and has version 7 of all others.
async fn vault(granted: Granted) -> Result<KvSecret, String> {
    match granted.path.as_str() {
        path if path.starts_with("hangs") => std::future::pending().await,
        "refused" => Err("permission denied".to_owned()),
        path => Ok(KvSecret {
            version: 7,
            data: BTreeMap::from([("key".to_owned(), path.to_owned())]),
        }),
    }
}

struct Running {
    snapshots: Snapshots,
    deliveries: Deliveries,
    started: Instant,
    _nudge: watch::Sender<()>,
    _tasks: JoinSet<()>,
}

impl Running {
    fn start(grants: &[&str]) -> Self {
        Self::on(grants, vault)
    }

    fn on<F>(grants: &[&str], vault: impl Fn(Granted) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<KvSecret, String>> + Send + 'static,
    {
        let (snapshots, deliveries) = (Snapshots::new(mesh(grants)), Deliveries::default());
        let (nudge, nudged) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(
            Follower::new(
                snapshots.clone(),
                deliveries.clone(),
                SecretLimits::default(),
            )
            .run(vault, nudged),
        );
        Self {
            snapshots,
            deliveries,
            started: Instant::now(),
            _nudge: nudge,
            _tasks: tasks,
        }
    }

    /// Waits until exactly these are published, as `namespace/name=path`; returns after how many seconds.
    async fn until(&self, expected: &[&str]) -> u64 {
        let mut snapshots = self.snapshots.watch();
        let known = snapshots.wait_for(|snapshot| {
            let known = snapshot.secrets.keys();
            let known = known.map(|granted| format!("{}={}", granted.name, granted.path));
            known.eq(expected.iter().copied())
        });
        let found = timeout(Duration::from_secs(3_600), known).await;
        found.unwrap_or_else(|_| panic!("{expected:?}")).unwrap();
        self.started.elapsed().as_secs()
    }

    /// Waits for the result of a grant.
    async fn results(&self, name: &str) -> Result<u64, String> {
        let mut changes = self.deliveries.changes();
        loop {
            if let Some(results) = self.deliveries.of(&name.parse().unwrap()) {
                return results;
            }
            changes.changed().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hanging_path_does_not_delay_other_namespaces_or_new_grants_there() {
    let hanging: Vec<String> = (0..200).map(|n| format!("a/s{n}=hangs-{n}")).collect();
    let mut grants: Vec<&str> = hanging.iter().map(String::as_str).collect();
    grants.push("b/one=one");
    let running = Running::start(&grants);
    assert_eq!(running.until(&["b/one=one"]).await, 0);
    grants.extend(["b/two=two", "c/one=one"]);
    running.snapshots.publish_mesh(mesh(&grants));
    let all = ["b/one=one", "b/two=two", "c/one=one"];
    assert_eq!(running.until(&all).await, 0);
    let results = running.results("a/s0").await;
    assert_eq!(results.unwrap_err(), "no answer within 5 seconds");
}

#[tokio::test(start_paused = true)]
async fn within_a_namespace_paths_that_answered_are_read_first_from_the_second_round() {
    let mut grants: Vec<String> = (0..40).map(|n| format!("a/a{n}=hangs-{n}")).collect();
    grants.push("a/z=fine".to_owned());
    let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
    let running = Running::start(&grants);
    running.until(&["a/z=fine"]).await;
    let first = Instant::now();
    // A new grant starts a round at once.
    let more = [&grants[..], &["a/y=fine-too"]].concat();
    running.snapshots.publish_mesh(mesh(&more));
    running.until(&["a/y=fine-too", "a/z=fine"]).await;
    assert_eq!(first.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_value_of_one_path_is_not_given_for_another() {
    let running = Running::start(&["a/db=old"]);
    running.until(&["a/db=old"]).await;
    assert_eq!(running.results("a/db").await, Ok(7));
    running.snapshots.publish_mesh(mesh(&["a/db=refused"]));
    running.until(&[]).await;
    assert_eq!(
        running.results("a/db").await.unwrap_err(),
        "permission denied"
    );
    running.snapshots.publish_mesh(mesh(&["a/db=new"]));
    running.until(&["a/db=new"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_value_stays_when_it_cannot_be_read_and_goes_when_it_is_no_longer_granted() {
    let sealed = Arc::new(AtomicBool::new(false));
    let is_sealed = Arc::clone(&sealed);
    let running = Running::on(&["a/db=fine", "b/db=fine"], move |granted| {
        let sealed = is_sealed.load(Ordering::Relaxed);
        async move {
            match sealed {
                true => Err("Vault is sealed".to_owned()),
                false => vault(granted).await,
            }
        }
    });
    let both = ["a/db=fine", "b/db=fine"];
    running.until(&both).await;
    sealed.store(true, Ordering::Relaxed);
    let mut changes = running.deliveries.changes();
    while running.results("b/db").await.is_ok() {
        changes.changed().await.unwrap();
    }
    running.until(&both).await;
    running.snapshots.publish_mesh(mesh(&["a/db=fine"]));
    running.until(&["a/db=fine"]).await;
    assert_eq!(running.deliveries.of(&"b/db".parse().unwrap()), None);
}
