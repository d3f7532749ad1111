//! Identity and discovery together, against a fake control plane that can misbehave.

use merlon_test_support::ports::{self, Refusing};
use std::{path::Path, sync::Arc, time::Duration};

use merlon_api::JoinToken;
use merlon_config::snapshot::{AddressState, ResourceKind, Version};

use super::{
    control_plane::{FakeControlPlane, Issuing},
    fixtures::{self, key, manifest, resources},
    harness::{run, until},
};
use crate::{
    config::Subject,
    control::{
        assemble::{HeldResource, Resources},
        discovery::{self, DiscoveryClient},
        identity::{self, IdentityManager, issue},
        snapshot_age::SnapshotAge,
        state_dir::StateDir,
    },
    limits::Limits,
    state::{destinations::LookupError, readiness::Unready, shared::Shared},
    telemetry::metrics::{FetchResult, Metrics, Update},
};

/// A proxy's control thread, without workers.
struct Proxy {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    renew: identity::Renew,
    snapshot_age: SnapshotAge,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Proxy {
    fn start(address: &url::Url, token: Option<JoinToken>, dir: Option<Arc<StateDir>>) -> Self {
        Self::start_with(Limits::default(), address, token, dir)
    }

    fn start_with(
        limits: Limits,
        address: &url::Url,
        token: Option<JoinToken>,
        dir: Option<Arc<StateDir>>,
    ) -> Self {
        let (shared, lookups) = fixtures::shared(limits);
        let metrics = Arc::new(Metrics::default());
        let snapshot_age = SnapshotAge::default();
        let root_namespace = "merlon-system".parse().unwrap();
        let start = issue::IdentityDeps {
            node_id: "test".to_owned(),
            address: address.clone(),
            root_namespace,
            workload: "shop/orders".parse().unwrap(),
            join_token: token,
            pod_token: None,
            trust_bundle: None,
        };
        let root_namespace = start.root_namespace.clone();
        let (keeper, renew) = IdentityManager::new(
            start,
            dir.clone(),
            Arc::clone(&shared),
            Arc::clone(&metrics),
        );
        let follow = DiscoveryClient::new(discovery::DiscoveryDeps {
            node_id: "test".to_owned(),
            address: address.clone(),
            root_namespace,
            subject: Subject::Sidecar {
                identity: "shop/orders".parse().unwrap(),
                workload: None,
            },
            secrets: None,
            state_dir: dir,
            renew: renew.clone(),
            snapshot_age: snapshot_age.clone(),
            shared: Arc::clone(&shared),
            metrics: Arc::clone(&metrics),
        });
        let tasks = vec![
            tokio::spawn(keeper.run()),
            tokio::spawn(follow.run(lookups)),
        ];
        Self {
            shared,
            metrics,
            renew,
            snapshot_age,
            tasks,
        }
    }

    fn join(control_plane: &FakeControlPlane) -> Self {
        Self::start(
            &control_plane.address,
            Some(control_plane.join_token()),
            None,
        )
    }

    /// Joins, and saves its state in this directory.
    fn join_with(control_plane: &FakeControlPlane, dir: Arc<StateDir>) -> Self {
        let token = Some(control_plane.join_token());
        Self::start(&control_plane.address, token, Some(dir))
    }

    /// Waits until identity and snapshot are saved.
    async fn until_saved(&self) {
        until("the saved state", || {
            self.metrics.persists.value(FetchResult::Ok) >= 2
        })
        .await;
    }

    fn version(&self) -> Option<Version> {
        let snapshot = self.shared.snapshot.load_full();
        snapshot
            .as_ref()
            .as_ref()
            .map(|snapshot| snapshot.version.clone())
    }

    fn serial(&self) -> Option<String> {
        let identity = self.shared.identity.load_full();
        identity
            .as_ref()
            .as_ref()
            .map(|tls| tls.svid().serial.clone())
    }

    async fn wait_for_snapshot(&self, state: &Resources) {
        let version = manifest(state).0;
        until("the snapshot", || self.version().as_ref() == Some(&version)).await;
    }

    /// Stops its tasks and releases its state directory.
    async fn stop(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }
}

fn https(server: &Refusing) -> url::Url {
    format!("https://{}", server.address()).parse().unwrap()
}

fn open(path: &Path) -> Arc<StateDir> {
    fixtures::state_dir(path)
}

#[test]
fn a_proxy_with_a_join_token_obtains_a_certificate_and_then_a_snapshot() {
    run(async {
        let state = resources(&[]);
        let control_plane = FakeControlPlane::start(state.clone());
        let proxy = Proxy::join(&control_plane);
        proxy.wait_for_snapshot(&state).await;
        assert!(proxy.shared.readiness.is_ready());
        let version = manifest(&state).0.to_string();
        until("the report", || {
            let reports = control_plane.script.reports.lock().unwrap();
            reports
                .iter()
                .any(|report| format!("{report:?}").contains(&version))
        })
        .await;
        assert_eq!(proxy.snapshot_age.age(), 0);
    });
}

#[test]
fn a_certificate_that_does_not_match_the_request_is_never_used() {
    run(async {
        for wrong in [Issuing::OtherIdentity, Issuing::OtherRoot, Issuing::Refuse] {
            let control_plane = FakeControlPlane::start(resources(&[]));
            *control_plane.script.issuing.lock().unwrap() = wrong;
            let proxy = Proxy::join(&control_plane);
            until("the refusal", || {
                proxy.metrics.issues.value(FetchResult::Failed) > 0
            })
            .await;
            assert_eq!(proxy.serial(), None, "{wrong:?}");
            assert_eq!(
                proxy.shared.readiness.most_severe(),
                Some(Unready::NoIdentity),
                "{wrong:?}"
            );
        }
    });
}

#[test]
fn a_join_token_is_not_sent_to_a_control_plane_with_another_root() {
    run(async {
        let control_plane = FakeControlPlane::start(resources(&[]));
        let other = FakeControlPlane::start(resources(&[]));
        let proxy = Proxy::start(&control_plane.address, Some(other.join_token()), None);
        until("the failure", || {
            proxy.metrics.issues.value(FetchResult::Failed) > 0
        })
        .await;
        assert!(control_plane.script.evidence.lock().unwrap().is_empty());
    });
}

#[test]
fn a_restarted_proxy_restores_its_state_while_the_control_plane_is_unreachable() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let state = resources(&["shop/payments"]);
        let control_plane = FakeControlPlane::start(state.clone());
        let dir = open(folder.path());
        let proxy = Proxy::join_with(&control_plane, Arc::clone(&dir));
        proxy.wait_for_snapshot(&state).await;
        proxy.until_saved().await;
        let serial = proxy.serial();
        proxy.stop().await;
        drop(control_plane);
        drop(dir);

        let unserved = ports::refusing();
        let proxy = Proxy::start(&https(&unserved), None, Some(open(folder.path())));

        proxy.wait_for_snapshot(&state).await;
        until("the identity", || proxy.serial() == serial).await;
        until("readiness", || proxy.shared.readiness.is_ready()).await;
    });
}

#[test]
fn a_restarted_proxy_does_not_use_a_state_that_is_truncated_or_changed() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let state = resources(&["shop/payments"]);
        let control_plane = FakeControlPlane::start(state.clone());
        let proxy = Proxy::join_with(&control_plane, open(folder.path()));
        proxy.wait_for_snapshot(&state).await;
        proxy.until_saved().await;
        proxy.stop().await;
        drop(control_plane);

        let file = folder.path().join("snapshot.json");
        let whole = std::fs::read(&file).unwrap();
        let truncated = whole[..whole.len() / 2].to_vec();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        let unserved = ports::refusing();
        let restart = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            Proxy::start(&https(&unserved), None, Some(open(folder.path())))
        };
        for (what, bytes) in [("truncated", truncated), ("changed", changed)] {
            let proxy = restart(&bytes);
            // It connects once it has read the file, with its saved identity.
            until("an attempt to connect", || {
                proxy.metrics.connects.value(FetchResult::Failed) > 0
            })
            .await;
            assert_eq!(proxy.version(), None, "{what}");
            let reason = proxy.shared.readiness.most_severe();
            assert_eq!(reason, Some(Unready::NoSnapshot), "{what}");
            proxy.stop().await;
        }
        restart(&whole).wait_for_snapshot(&state).await;
    });
}

#[test]
fn a_proxy_that_cannot_save_its_state_serves_on_and_counts_the_failures() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        // As on a full disk, no file can be written: the names of the unfinished files are taken by directories.
        for file in ["identity.json.next", "snapshot.json.next"] {
            std::fs::create_dir(folder.path().join(file)).unwrap();
        }
        let state = resources(&[]);
        let control_plane = FakeControlPlane::start(state.clone());
        let proxy = Proxy::join_with(&control_plane, open(folder.path()));
        proxy.wait_for_snapshot(&state).await;
        until("the failures", || {
            proxy.metrics.persists.value(FetchResult::Failed) >= 2
        })
        .await;
        assert_eq!(proxy.metrics.persists.value(FetchResult::Ok), 0);
        assert!(proxy.shared.readiness.is_ready());
        assert!(!folder.path().join("identity.json").exists());
        assert!(!folder.path().join("snapshot.json").exists());
        // Later changes are put in force too.
        let after = resources(&["shop/payments"]);
        control_plane.script.state.send_replace(after.clone());
        proxy.wait_for_snapshot(&after).await;
    });
}

#[test]
fn a_restarted_proxy_fetches_only_missing_resources_and_does_not_reuse_its_join_token() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let state = resources(&[]);
        let control_plane = FakeControlPlane::start(state.clone());
        let start = |dir| Proxy::join_with(&control_plane, dir);
        let proxy = start(open(folder.path()));
        proxy.wait_for_snapshot(&state).await;
        proxy.until_saved().await;
        proxy.stop().await;
        control_plane.script.requests.lock().unwrap().clear();

        let proxy = start(open(folder.path()));

        proxy.wait_for_snapshot(&state).await;
        until("the subscription", || {
            control_plane.script.requests.lock().unwrap().len() >= 4
        })
        .await;
        for request in control_plane.script.requests.lock().unwrap().iter() {
            assert_eq!(
                request.initial_resource_versions.len(),
                request.resource_names_subscribe.len()
            );
            assert!(
                request.response_nonce.is_empty(),
                "no response was sent, so none is acknowledged"
            );
        }
        assert_eq!(control_plane.script.evidence.lock().unwrap().len(), 1);
    });
}

#[test]
fn a_renewal_replaces_the_certificate_and_authenticates_with_the_old_one() {
    run(async {
        let control_plane = FakeControlPlane::start(resources(&[]));
        // Renewal starts at half of the lifetime: in two seconds.
        *control_plane.script.issuing.lock().unwrap() = Issuing::For(Duration::from_secs(4));
        let proxy = Proxy::join(&control_plane);
        until("the first certificate", || proxy.serial().is_some()).await;
        let first = proxy.serial();
        *control_plane.script.issuing.lock().unwrap() = Issuing::For(Duration::from_secs(3_600));
        until("the renewal", || proxy.serial() != first).await;
        assert!(proxy.serial().is_some());
        assert_eq!(proxy.metrics.rotations.value(), 1);
        let evidence = control_plane.script.evidence.lock().unwrap();
        assert!(
            evidence.len() == 2 && evidence[0].is_some() && evidence[1].is_none(),
            "the renewal authenticates with the certificate"
        );
    });
}

#[test]
fn a_certificate_that_is_due_at_once_is_not_renewed_without_a_pause() {
    run(async {
        let state = resources(&[]);
        let control_plane = FakeControlPlane::start(state.clone());
        *control_plane.script.issuing.lock().unwrap() = Issuing::DueAtOnce;
        let limits = Limits {
            certificate_retry: Duration::from_secs(3_600),
            ..Limits::default()
        };
        let token = Some(control_plane.join_token());
        let proxy = Proxy::start_with(limits, &control_plane.address, token, None);
        proxy.wait_for_snapshot(&state).await;
        let first = proxy.serial().unwrap();
        // A renewal that an operator requests does not wait.
        let (reply, answer) = tokio::sync::oneshot::channel();
        proxy.renew.send(reply).await.unwrap();
        let (old, new) = answer.await.unwrap().unwrap();
        assert_eq!((old, new), (first, proxy.serial().unwrap()));
        assert_eq!(control_plane.script.evidence.lock().unwrap().len(), 2);
    });
}

#[test]
fn an_operator_can_request_a_renewal() {
    run(async {
        let control_plane = FakeControlPlane::start(resources(&[]));
        let proxy = Proxy::join(&control_plane);
        until("the first certificate", || proxy.serial().is_some()).await;
        let first = proxy.serial().unwrap();
        let (reply, answer) = tokio::sync::oneshot::channel();
        proxy.renew.send(reply).await.unwrap();
        let (old, new) = answer.await.unwrap().unwrap();
        assert_eq!((old, new), (first, proxy.serial().unwrap()));
    });
}

#[test]
fn resources_whose_hash_differs_are_rejected_and_the_old_state_stays() {
    run(async {
        let before = resources(&[]);
        let control_plane = FakeControlPlane::start(before.clone());
        let proxy = Proxy::join(&control_plane);
        proxy.wait_for_snapshot(&before).await;

        *control_plane.script.corrupt.lock().unwrap() = true;
        control_plane.script.requests.lock().unwrap().clear();
        control_plane
            .script
            .state
            .send_replace(resources(&["shop/payments"]));
        until("the refusal", || {
            let requests = control_plane.script.requests.lock().unwrap();
            requests
                .iter()
                .any(|request| request.error_detail.is_some())
        })
        .await;

        assert_eq!(proxy.version(), Some(manifest(&before).0));
    });
}

#[test]
fn a_state_that_does_not_compile_is_rejected_with_the_reason_and_a_later_valid_one_is_applied() {
    run(async {
        let before = resources(&[]);
        let control_plane = FakeControlPlane::start(before.clone());
        let proxy = Proxy::join(&control_plane);
        proxy.wait_for_snapshot(&before).await;

        let mut broken = before.clone();
        let json = r#"{"name":"shop/orders","policies":[{"name":"shop/orders","origin":"orders.cedar:1:1","text":"permit (oops"}]}"#;
        let held = HeldResource {
            version: Version::of(json.as_bytes()),
            json: json.into(),
        };
        broken.insert(key(ResourceKind::Service, "shop/orders"), held);
        control_plane.script.state.send_replace(broken);
        until("the refusal", || {
            let requests = control_plane.script.requests.lock().unwrap();
            let mut errors = requests
                .iter()
                .filter_map(|request| request.error_detail.as_ref());
            errors.any(|error| error.message.contains("orders.cedar"))
        })
        .await;
        assert_eq!(proxy.version(), Some(manifest(&before).0));
        assert_eq!(proxy.metrics.snapshots.value(Update::Refused), 1);

        let after = resources(&["shop/payments"]);
        control_plane.script.state.send_replace(after.clone());
        proxy.wait_for_snapshot(&after).await;
    });
}

#[test]
fn concurrent_first_lookups_of_a_destination_share_one_subscription() {
    run(async {
        let control_plane = FakeControlPlane::start(resources(&[]));
        *control_plane.script.known.lock().unwrap() = resources(&["shop/payments"]);
        let proxy = Proxy::join(&control_plane);
        let name = "shop/payments"
            .parse::<merlon_config::name::ServiceName>()
            .unwrap();
        // Lookups wait until there is a certificate.
        let lookups = (0..20).map(|_| proxy.shared.destinations.ask(name.clone()));
        for answer in futures_util::future::join_all(lookups).await {
            assert_eq!(answer.unwrap().name, name);
        }
        let requests = control_plane.script.requests.lock().unwrap();
        let subscriptions = requests
            .iter()
            .flat_map(|request| &request.resource_names_subscribe);
        assert_eq!(
            subscriptions
                .filter(|name| *name == "shop/payments")
                .count(),
            1
        );
    });
}

#[test]
fn an_address_lookup_returns_the_service_behind_the_address() {
    run(async {
        let control_plane = FakeControlPlane::start(resources(&[]));
        let mut known = resources(&["shop/payments"]);
        let address = r#"{"service":{"service":"shop/payments","port":80}}"#;
        known.insert(
            key(ResourceKind::Address, "10.9.0.1:80"),
            HeldResource {
                version: Version::of(address.as_bytes()),
                json: address.into(),
            },
        );
        *control_plane.script.known.lock().unwrap() = known;
        let proxy = Proxy::join(&control_plane);
        let lookup = proxy
            .shared
            .destinations
            .ask_address("10.9.0.1:80".parse().unwrap());
        assert_eq!(
            lookup.await.unwrap(),
            AddressState::Service {
                service: "shop/payments".parse().unwrap(),
                port: 80,
                workload: None,
                also: Vec::new(),
            }
        );
    });
}

#[test]
fn an_address_is_not_external_while_the_control_plane_is_unreachable() {
    run(async {
        let unserved = ports::refusing();
        let offline = Proxy::start(
            &https(&unserved),
            Some(FakeControlPlane::start(resources(&[])).join_token()),
            None,
        );
        let lookup = offline
            .shared
            .destinations
            .ask_address("192.0.2.1:443".parse().unwrap());
        assert_eq!(lookup.await.unwrap_err(), LookupError::Unavailable);
    });
}

#[test]
fn a_missing_destination_is_unknown_and_any_is_unavailable_while_the_control_plane_is_unreachable()
{
    run(async {
        let control_plane = FakeControlPlane::start(resources(&[]));
        let proxy = Proxy::join(&control_plane);
        proxy.wait_for_snapshot(&resources(&[])).await;
        let ask = || {
            proxy
                .shared
                .destinations
                .ask("shop/nosuch".parse().unwrap())
        };
        assert_eq!(ask().await.unwrap_err(), LookupError::Unknown);
        assert_eq!(
            ask().await.unwrap_err(),
            LookupError::Unknown,
            "the negative answer is cached"
        );

        let unserved = ports::refusing();
        let offline = Proxy::start(&https(&unserved), Some(control_plane.join_token()), None);
        let answer = offline
            .shared
            .destinations
            .ask("shop/payments".parse().unwrap())
            .await;
        assert_eq!(answer.unwrap_err(), LookupError::Unavailable);
    });
}

#[test]
fn the_snapshot_age_grows_only_after_the_control_plane_disconnects() {
    run(async {
        let state = resources(&[]);
        let control_plane = FakeControlPlane::start(state.clone());
        let proxy = Proxy::join(&control_plane);
        proxy.wait_for_snapshot(&state).await;
        until("the connection", || proxy.metrics.connected.value() == 1).await;
        drop(control_plane);
        until("the end of the stream", || {
            proxy.metrics.connected.value() == 0
        })
        .await;
        until("the age to grow", || proxy.snapshot_age.age() >= 1).await;
        assert_eq!(proxy.version(), Some(manifest(&state).0));
    });
}
