//! Why was this refused: `merlon explain`.

use http::StatusCode;
use merlon_tests::{Mesh, Reply, process::Ended};

const POLICY: &str = r#"
@id("read-own")
permit(principal == Workload::"shop/web", action == Action::"GET", resource)
when { context.path like "/orders/*" };

@id("frozen")
@reason("Orders are frozen during the audit.")
forbid(principal, action in Action::"http", resource) when { context.path like "/orders/frozen*" };
"#;

async fn explained(mesh: &Mesh, reply: &Reply) -> Ended {
    let ended = mesh.merlon(&["explain", reply.decision_id()]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended
}

fn says(ended: &Ended, what: &str) {
    assert!(
        ended.out.contains(what),
        "no `{what}` in:\n{}\n{}",
        ended.out,
        ended.err
    );
}

#[tokio::test]
async fn a_refusal_is_explained_with_its_facts_the_policies_and_the_one_that_decided() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    let refused = mesh
        .as_workload("web")
        .get("orders", "/orders/frozen-7")
        .await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");

    let ended = explained(&mesh, &refused).await;
    says(&ended, "denied");
    says(&ended, "/orders/frozen-7");
    says(&ended, "spiffe://mesh.test/ns/shop/sa/web");
    says(&ended, "read-own");
    says(&ended, "frozen");
}

#[tokio::test]
async fn a_refusal_by_default_says_which_permit_came_near_and_what_did_not_hold() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    let refused = mesh.as_workload("web").get("orders", "/elsewhere").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let ended = explained(&mesh, &refused).await;
    says(&ended, "read-own");
    says(&ended, "/elsewhere");
}

#[tokio::test]
async fn after_the_policy_has_changed_it_says_what_was_and_what_today_would_be() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let refused = web.get("orders", "/orders/frozen-7").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");

    mesh.edit("orders-policy.yaml", "/orders/frozen*", "/orders/other*");
    merlon_tests::until("the new policy is live", async || {
        web.get("orders", "/orders/frozen-7").await.status == StatusCode::OK
    })
    .await;

    let ended = mesh
        .merlon(&["explain", refused.decision_id(), "--output", "json"])
        .await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    let explained: serde_json::Value = serde_json::from_str(&ended.out).expect("JSON");
    assert_eq!(explained["then"]["allowed"], false, "{explained:#}");
    assert!(
        explained.to_string().contains("\"allowed\":true"),
        "today it is allowed: {explained:#}"
    );
}

#[tokio::test]
async fn a_decision_that_nobody_remembers_is_said_to_be_so() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    for id in ["00000000-0", "nonsense", "../../etc/passwd"] {
        let ended = mesh.merlon(&["explain", id]).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.err.starts_with("error: "), "{ended:?}");
    }
}

#[tokio::test]
async fn a_control_plane_that_is_away_is_said_to_be_away() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    mesh.control_plane().kill9();
    let ended = mesh.merlon(&["proxy", "status"]).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.err.contains("hint: "), "{ended:?}");
}
