//! Which decisions are recorded, and for how long.

use crate::{limits::Limits, tests::harness::*};

/// A permitted and a refused path.
const POLICIES: &str = r#"
    @id("open") permit (principal, action, resource)
    when { context has path && context.path like "/open*" };
"#;

fn plain(program: &Program, limits: Limits) -> Node {
    let orders = service("shop/orders", 80, program.port(), "http", POLICIES);
    Node::with_limits(
        None,
        &State::new("shop/orders").with_service(orders),
        limits,
    )
}

/// Sends a request and returns the ID of its decision.
async fn ask(node: &Node, path: &str) -> crate::telemetry::decision_log::DecisionId {
    http1(node.inbound, get("orders", path)).await;
    let line = node.log.for_path(path).await;
    line["decision_id"].as_str().unwrap().parse().unwrap()
}

#[test]
fn permits_beyond_the_limit_of_a_second_are_not_recorded_and_refusals_always_are() {
    run(async {
        let program = Program::echo().await;
        for (recorded_permits, recorded) in [(1, true), (0, false)] {
            let limits = Limits {
                recorded_permits,
                ..Limits::default()
            };
            let node = plain(&program, limits);
            let decisions = &node.shared.decisions;
            let permitted = ask(&node, "/open").await;
            assert_eq!(decisions.find(permitted).is_some(), recorded);
            let refused = ask(&node, "/closed").await;
            assert_eq!(decisions.find(refused).unwrap().outcome.status, 403);
        }
        assert_eq!(program.requests.get(), 2);
    });
}

#[test]
fn the_decisions_of_the_last_requests_are_kept_and_older_ones_are_not() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            decisions: 2,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let decisions = &node.shared.decisions;
        let (one, two) = (ask(&node, "/1").await, ask(&node, "/2").await);
        assert!(decisions.find(one).is_some() && decisions.find(two).is_some());
        let three = ask(&node, "/3").await;
        assert!(decisions.find(one).is_none());
        assert!(decisions.find(two).is_some() && decisions.find(three).is_some());
    });
}
