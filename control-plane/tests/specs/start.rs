//! Start and shutdown.

use std::fs;

use merlon_control_plane::{ControlPlaneConfig, app, app::StartError};

use merlon_test_support::{limit, wait::TIMEOUT};

use crate::harness::{MESH, Plane, service, shop};

#[tokio::test]
async fn an_invalid_directory_is_rejected_with_every_problem_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let resources = folder.path().join("resources");
    fs::create_dir(&resources).unwrap();
    fs::write(
        resources.join("mesh.yaml"),
        MESH.replace("trustDomain", "trustDomian"),
    )
    .unwrap();
    fs::write(
        resources.join("web.yaml"),
        service("web", 7001).replace("port: 80", "prot: 80"),
    )
    .unwrap();
    let state = folder.path().join("state");
    let config = ControlPlaneConfig::on_loopback(resources, state.clone());
    let StartError::Configuration(report) = app::run(config).await.unwrap_err() else {
        panic!("a configuration error");
    };
    let files: Vec<_> = report
        .problems()
        .iter()
        .map(|problem| problem.file.as_str())
        .collect();
    assert!(
        files.contains(&"mesh.yaml") && files.contains(&"web.yaml"),
        "{report}"
    );
    assert!(!state.exists());
}

#[tokio::test]
async fn a_state_directory_belongs_to_one_control_plane() {
    let plane = Plane::start().await;
    let path = |name: &str| plane.folder.path().join(name);
    let mut config = ControlPlaneConfig::on_loopback(path("resources"), path("state"));
    config.admin_socket = path("other.sock");
    let error = app::run(config).await.unwrap_err();
    assert!(matches!(error, StartError::StateDirTaken(_)), "{error}");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_the_drain_timeout_and_removes_the_socket() {
    let drain_timeout = TIMEOUT * 60;
    let plane = Plane::with_config(&shop(), |config| config.drain_timeout = drain_timeout).await;
    let web = plane.join("web").await;
    let mut stream = web.stream(&plane, "web-1").await;
    stream.subscribe_manifest().await;
    stream.next().await.unwrap();
    let socket = plane.running.admin_socket.clone();
    let ended = limit("the end", plane.running.shutdown());
    let (ended, status) = tokio::join!(ended, stream.next());
    ended.unwrap();
    assert_eq!(status.unwrap_err().code(), tonic::Code::Unavailable);
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_file_that_changes_the_trust_domain_is_rejected() {
    let plane = Plane::start().await;
    plane.write("mesh.yaml", &MESH.replace("demo.test", "other.test"));
    let problem = plane.problem().await;
    assert_eq!(problem["field"], "spec.trustDomain");
    assert_eq!(plane.get("/v1/status").await["trustDomain"], "demo.test");
}
