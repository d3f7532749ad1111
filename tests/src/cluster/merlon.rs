//! Merlon in a cluster, installed as in production: images, charts, `helm install`.

use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;

use super::running::Cluster;
use crate::{
    process::{Output, Plan},
    tools, wait,
};

/// The namespace that Merlon is installed in.
pub const NAMESPACE: &str = "merlon-system";
/// The image of application programs: curl, Redis, BusyBox's httpd.
pub const PROGRAMS: &str = "localhost/programs:test";
/// The mesh's trust domain.
pub const TRUST_DOMAIN: &str = "cluster.merlon.test";

/// The images of Merlon's programs, and the charts that install them.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    tag: String,
    charts: PathBuf,
}

impl Images {
    /// Builds them from their `Dockerfile`s, once per test binary, and only after changes.
    ///
    /// # Panics
    /// If the build fails; the message contains its output.
    pub async fn built() -> &'static Self {
        static BUILT: OnceCell<Images> = OnceCell::const_new();
        BUILT
            .get_or_init(async || {
                let proxy = tools::binary("merlon-proxy");
                let programs = proxy.parent().expect("a folder");
                let charts = tools::root().join("charts");
                Self::of(programs, &programs.join("images"), charts).await
            })
            .await
    }

    /// Builds the images of the simulated next version that `tests/cluster/newer` built, with a new field in the proxies'
    /// snapshot and one in a custom resource.
    ///
    /// # Panics
    /// If that version is not built; the message contains the command. If the build of the images fails.
    pub async fn newer() -> Self {
        let proxy = tools::binary("merlon-proxy");
        let folder = proxy.parent().expect("a folder").join("newer");
        let work = crate::folder::fresh();
        let script = tools::root().join("tests/cluster/newer");
        let checked = Plan::new("newer", script, work.path())
            .arg("--check")
            .arg(&folder)
            .run()
            .await;
        assert_eq!(checked.code(), 0, "{}", checked.err);
        let images = folder.join("images");
        Self::of(&folder.join("programs"), &images, folder.join("charts")).await
    }

    async fn of(programs: &Path, folder: &Path, charts: PathBuf) -> Self {
        let work = crate::folder::fresh();
        let script = tools::root().join("tests/cluster/images");
        let ended = Plan::new("images", script, work.path())
            .arg(folder)
            .arg(programs)
            // The first time, it downloads a Debian base.
            .run_within(4 * wait::TIMEOUT)
            .await;
        assert_eq!(ended.code(), 0, "{}", ended.err);
        Self {
            folder: folder.to_owned(),
            tag: ended.out.trim().to_owned(),
            charts,
        }
    }

    /// The path of a chart.
    pub fn chart(&self, name: &str) -> String {
        self.charts.join(name).display().to_string()
    }

    /// The common tag of the images.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

/// Chart values for an evaluation: these images, and no Vault.
pub fn evaluation_values(images: &Images) -> String {
    format!(
        "mesh: {{ trustDomain: {TRUST_DOMAIN} }}\n\
         # The CA key is in a Secret: for evaluation only.\n\
         certificates: {{ issuer: embedded }}\n\
         images: {{ registry: localhost, tag: \"{}\", pullPolicy: Never }}\n",
        images.tag()
    )
}

impl Cluster {
    /// Runs `helm`. It may fail.
    pub async fn try_helm(&self, arguments: &[&str]) -> Output {
        self.inside("helm", &tools::installed("helm"))
            .env("HELM_CACHE_HOME", self.folder().join("helm/cache"))
            .env("HELM_CONFIG_HOME", self.folder().join("helm/config"))
            .env("HELM_DATA_HOME", self.folder().join("helm/data"))
            .args(arguments)
            // Longer than Helm's own 5 minutes, because its message says what was not ready.
            .run_within(3 * wait::TIMEOUT)
            .await
    }

    /// Runs `helm` and returns its output.
    ///
    /// # Panics
    /// If it fails; the message contains the description and logs of Merlon's pods.
    pub async fn helm(&self, arguments: &[&str]) -> String {
        let ended = self.try_helm(arguments).await;
        if ended.code() != 0 {
            let pods = self
                .try_kubectl(&["describe", "pods", "-n", NAMESPACE])
                .await;
            let logs = self
                .try_kubectl(&[
                    "logs",
                    "-n",
                    NAMESPACE,
                    "--all-containers",
                    "--tail=50",
                    "-l",
                    "app.kubernetes.io/name=merlon",
                ])
                .await;
            panic!(
                "helm {arguments:?}: {}\n{}\n{}",
                ended.err, pods.out, logs.out
            );
        }
        ended.out
    }

    /// Imports Merlon's images and [`PROGRAMS`].
    pub async fn load_merlon(&self) -> &'static Images {
        let images = Images::built().await;
        self.load_images(images).await;
        images
    }

    /// Imports these images.
    pub async fn load_images(&self, images: &Images) {
        for name in [
            "merlon-proxy",
            "merlon-control-plane",
            "merlon-intercept",
            "programs",
        ] {
            self.load_archive(&images.folder.join(format!("{name}.tar")))
                .await;
        }
    }

    /// Installs the charts as in `docs/install.md`, with these values and those of the images.
    ///
    /// # Panics
    /// When Helm fails.
    pub async fn install_merlon(&self, values: &str) {
        self.load_merlon().await;
        let definitions = Images::built().await.chart("merlon-crds");
        self.helm(&["install", "merlon-crds", &definitions]).await;
        self.helm_merlon("install", values, &["--create-namespace", "--wait"])
            .await;
        self.until_admission_answers().await;
    }

    /// Waits until the API server reaches the webhooks. The replicas are ready a moment before the node knows their addresses.
    pub async fn until_admission_answers(&self) {
        let limit = "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\nmetadata: { name: first, namespace: default }\n\
                     spec: { limits: [{ name: a, rate: { requests: 1, per: 1s } }] }\n";
        let file = self.folder().join("first.yaml");
        std::fs::write(&file, limit).expect("a file");
        let file = file.display().to_string();
        let dry_run = ["create", "--dry-run=server", "-f", &file];
        self.until_admitted(async || self.try_kubectl(&dry_run).await)
            .await;
    }

    /// Repeats a change while the API server reaches no webhook.
    ///
    /// # Panics
    /// If the change is refused.
    pub async fn until_admitted(&self, change: impl AsyncFn() -> Output) {
        let reached = |answer: &Output| !answer.err.contains("failed to call webhook");
        let answer = wait::until_value("admission answers", change, reached).await;
        assert_eq!(answer.code(), 0, "{}", answer.err);
    }

    /// Runs `helm install` or `helm upgrade` of the chart, with these values and those of the images.
    ///
    /// # Panics
    /// When Helm fails.
    pub async fn helm_merlon(&self, verb: &str, values: &str, more: &[&str]) {
        let images = Images::built().await;
        self.helm_merlon_of(images, verb, values, more).await;
    }

    /// [`Cluster::helm_merlon`] for another version.
    ///
    /// # Panics
    /// When Helm fails.
    pub async fn helm_merlon_of(&self, images: &Images, verb: &str, values: &str, more: &[&str]) {
        let chart = images.chart("merlon");
        let file = self.folder().join("values.yaml");
        std::fs::write(&file, values).expect("a file");
        let file = file.display().to_string();
        let tag = format!("images.tag={}", images.tag());
        let mut all = vec![verb, "merlon", &chart, "--namespace", NAMESPACE];
        all.extend(["--values", &file, "--set-string", &tag]);
        all.extend(["--set", "images.registry=localhost,images.pullPolicy=Never"]);
        all.extend(more);
        self.helm(&all).await;
    }
}
