//! Failures and rotations under load: two hundred requests a second, an open gRPC stream and an open TCP session.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::StatusCode;
use merlon_tests::{
    Load, Mesh,
    load::{Failure, FailureKind, Running, Tally},
    until,
};

/// How long each test keeps its load up: fifteen seconds, or the time that `make soak` sets.
fn time() -> Duration {
    let seconds = std::env::var("MERLON_LOAD_SECONDS").map_or(15, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("MERLON_LOAD_SECONDS is not a number of seconds: `{text}`"))
    });
    Duration::from_secs(seconds)
}

async fn mesh() -> Mesh {
    Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .grpc_service("chat")
        .allow_grpc("web")
        .tcp_service("echo")
        .allow_tcp("web")
        .start()
        .await
}

async fn load(mesh: &Mesh) -> Running {
    Load::from(mesh.as_workload("web"))
        .http("orders")
        .grpc_stream("chat")
        .tcp_session(mesh.outbound("web", "echo"))
        .begin()
        .await
}

/// Compares the counts of both ends: each request was answered, and the program saw it once.
fn nothing_was_lost(mesh: &Mesh, tally: &Tally) {
    tally.assert_no_failures();
    let seen = mesh.seen_by("orders");
    let numbers: BTreeSet<_> = seen
        .iter()
        .filter_map(|seen| seen.target.strip_prefix("/load/"))
        .collect();
    let loaded = seen
        .iter()
        .filter(|seen| seen.target.starts_with("/load/"))
        .count();
    assert_eq!(
        loaded as u64,
        tally.sent(),
        "the program saw each request once"
    );
    assert_eq!(numbers.len() as u64, tally.sent(), "and no request twice");
    assert!(tally.lines() > 0 && tally.echoes() > 0);
    assert_eq!(
        mesh.requests_seen_by("chat"),
        1,
        "one stream from beginning to end"
    );
    assert_eq!(
        mesh.requests_seen_by("echo"),
        1,
        "one session from beginning to end"
    );
}

fn print_summary(what: &str, tally: &Arc<Tally>, time: Duration) {
    println!(
        "{what}: {} requests in {time:?}, {} answered, {} lines on one stream, {} messages on one session, {} failures",
        tally.sent(),
        tally.answered(),
        tally.lines(),
        tally.echoes(),
        tally.failures().len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_control_plane_fails_no_request_and_proxies_catch_up_after_it_restarts() {
    let mesh = mesh().await;
    let load = load(&mesh).await;
    let time = time();
    let version = mesh.version_of("orders").await;

    load.until_age(time / 10).await;
    mesh.control_plane().kill9();
    until("the proxy notices", async || {
        mesh.sidecar("orders")
            .metric("merlon_control_plane_connected", "")
            .await
            == 0.0
    })
    .await;
    load.until_age(time / 2).await;
    // A change while the control plane is down.
    mesh.edit(
        "orders-policy.yaml",
        "action == Action::\"GET\"",
        "action in Action::\"http\"",
    );
    mesh.control_plane().restart().await;
    mesh.until_acknowledged_after("orders", &version).await;
    let reply = mesh
        .as_workload("web")
        .post("orders", "/written", "1")
        .await;
    assert_eq!(
        reply.status,
        StatusCode::OK,
        "the change is live: {reply:?}"
    );

    load.until_age(time).await;
    let age = load.age();
    let tally = load.end().await;
    print_summary("kill -9 of the control plane", &tally, age);
    nothing_was_lost(&mesh, &tally);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_rotations_of_every_certificate_lose_nothing() {
    const ROTATIONS: u32 = 20;
    let mesh = mesh().await;
    let watcher = mesh.test_peer("web").await;
    let load = load(&mesh).await;
    let time = time();

    let mut shown = BTreeSet::from([serial_shown(&watcher).await]);
    let mut issued = BTreeSet::new();
    for rotation in 1..=ROTATIONS {
        for workload in ["web", "orders", "chat", "echo"] {
            let (old, new) = mesh.rotate(workload).await;
            assert_ne!(old, new);
            if workload == "orders" {
                issued.extend([old, new]);
            }
        }
        shown.insert(serial_shown(&watcher).await);
        load.until_age(time * rotation / ROTATIONS).await;
    }
    let age = load.age();
    let tally = load.end().await;
    print_summary("20 rotations of four certificates", &tally, age);
    nothing_was_lost(&mesh, &tally);
    // A client that dialled throughout saw each certificate, old and new, in a handshake.
    assert_eq!(shown.len(), ROTATIONS as usize + 1, "{shown:?}");
    assert_eq!(shown, issued);
}

/// Load on `orders`, whose sidecar or whose caller's sidecar is killed, and load on other services, which must continue.
async fn load_beside(mesh: &Mesh) -> (Running, Running) {
    let orders = Load::from(mesh.as_workload("web"))
        .http("orders")
        .begin()
        .await;
    let others = Load::from(mesh.as_workload("batch"))
        .http("stock")
        .grpc_stream("chat")
        .tcp_session(mesh.outbound("batch", "echo"))
        .begin()
        .await;
    (orders, others)
}

async fn mesh_of_two_callers() -> Mesh {
    Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .service("stock")
        .allow("batch", "GET", "/**")
        .grpc_service("chat")
        .allow_grpc("batch")
        .tcp_service("echo")
        .allow_tcp("batch")
        .start()
        .await
}

/// The numbers of the load's requests that a program saw.
fn numbers_seen(mesh: &Mesh, workload: &str) -> impl Iterator<Item = u64> {
    mesh.seen_by(workload)
        .into_iter()
        .filter_map(|seen| seen.target.strip_prefix("/load/")?.parse().ok())
}

/// The number of requests that a program saw, each at most once.
fn seen_once(mesh: &Mesh, workload: &str) -> u64 {
    let seen = mesh.seen_by(workload);
    let targets: Vec<_> = seen.iter().map(|seen| seen.target.as_str()).collect();
    let distinct: BTreeSet<_> = targets.iter().collect();
    assert_eq!(targets.len(), distinct.len(), "no request came twice");
    targets.len() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_a_sidecar_blocks_its_traffic_and_it_recovers_without_the_control_plane() {
    let mesh = mesh_of_two_callers().await;
    let (orders, others) = load_beside(&mesh).await;
    let time = time();

    let mut outages: Vec<Outage> = Vec::new();
    for (quarter, killed) in [(1, "orders"), (2, "web")] {
        orders.until_age(time * quarter / 4).await;
        let before = orders.failures();
        let recovered = outages.last().map_or(0, |last| last.ready);
        for failure in &before {
            assert!(
                failure.number < Some(recovered),
                "between outages: {failure:?}"
            );
        }
        mesh.sidecar(killed).kill9();
        let dead = orders.sent();
        until("calls fail while it is gone", async || {
            orders.failures().len() > before.len() + 20
        })
        .await;
        // No request bypasses the dead sidecar. Requests of before the kill may still be on their way to the program.
        let failed = orders.failures().len();
        until("more calls fail", async || {
            orders.failures().len() > failed + 20
        })
        .await;
        let bypass = numbers_seen(&mesh, "orders").find(|number| *number >= dead);
        assert_eq!(bypass, None, "{killed} is dead since request {dead}");

        mesh.control_plane().kill9();
        mesh.sidecar(killed).start().await;
        let ready = orders.sent();
        outages.push(Outage {
            killed,
            failed: before.len(),
            dead,
            ready,
        });
        let answered = orders.answered();
        until("calls succeed again", async || {
            orders.answered() > answered + 50
        })
        .await;
        mesh.control_plane().restart().await;
    }
    orders.until_age(time).await;

    let tally = orders.end().await;
    print_summary("kill -9 of two sidecars", &tally, time);
    assert!(seen_once(&mesh, "orders") >= tally.answered());
    // Every request fails in one of the two outages, in the way that this outage explains.
    for (position, failure) in tally.failures().iter().enumerate() {
        let number = failure.number.expect("only requests can fail here");
        let explained = outages.iter().any(|outage| {
            outage.was_possible(position, number) && outage.explains(number, failure)
        });
        assert!(
            explained,
            "{outages:?} do not explain failure {position}, {failure:?}"
        );
    }
    let tally = others.end().await;
    print_summary("beside it", &tally, time);
    tally.assert_no_failures();
    assert_eq!(seen_once(&mesh, "stock"), tally.answered());
    assert_eq!(
        (mesh.requests_seen_by("chat"), mesh.requests_seen_by("echo")),
        (1, 1)
    );
}

/// The time in which a sidecar was dead, by the numbers of requests.
#[derive(Debug)]
struct Outage {
    killed: &'static str,
    /// The number of requests that failed before it was killed.
    failed: usize,
    /// The first request that was sent after it was killed.
    dead: u64,
    /// The first request that was sent after it was ready again: none of these fails.
    ready: u64,
}

impl Outage {
    /// Whether a request may have failed in this outage: it was sent before the end and failed after the beginning. A
    /// request of the first outage may still wait for an answer when the second begins.
    fn was_possible(&self, position: usize, number: u64) -> bool {
        position >= self.failed && number < self.ready
    }

    fn explains(&self, number: u64, failure: &Failure) -> bool {
        let reasons = |reasons: &[&str]| {
            let mut reasons = reasons.iter();
            failure.kind == FailureKind::Answer
                && reasons.any(|reason| failure.what.contains(&format!("\"reason\":\"{reason}\"")))
        };
        let was_open = number < self.dead;
        match self.killed {
            // The caller's proxy answers. While the killed one starts, it has no certificate and then no snapshot.
            "orders" => {
                reasons(&["upstream.connect"])
                    || was_open && reasons(&["upstream.reset"])
                    || !was_open && reasons(&["upstream.identity", "config.unavailable"])
            }
            // Nothing answers, until the new process listens. A client notices the end of an idle connection when it
            // sends on it.
            _ => match failure.kind {
                FailureKind::Refused => true,
                FailureKind::Broken => {
                    was_open || failure.what.contains("on a keep-alive connection")
                }
                FailureKind::Answer => !was_open && reasons(&["config.unavailable"]),
                FailureKind::Other => false,
            },
        }
    }
}

/// The serial number of the certificate that the proxy shows in a handshake now.
async fn serial_shown(watcher: &merlon_tests::mesh::TestPeer) -> String {
    let stream = watcher
        .to("orders")
        .dial(merlon_certs::MERLON_H2)
        .await
        .expect("a handshake");
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().expect("a certificate");
    let leaf = merlon_certs::LeafFacts::parse(&chain[0]).expect("a leaf");
    leaf.serial
}
