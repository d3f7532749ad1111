use super::{Ca, Node, PERMIT_ALL, Program, State, destination, service};
use crate::limits::Limits;

/// `shop/web` calls `shop/orders`, each behind its own proxy.
pub(crate) struct Pair {
    pub(crate) ca: Ca,
    pub(crate) web: Node,
    pub(crate) orders: Node,
    pub(crate) web_state: State,
}

impl Pair {
    /// `program` serves port 80 of `shop/orders`, protected by `policies`.
    pub(crate) fn new(program: &Program, protocol: &str, policies: &str) -> Self {
        Self::with(
            service("shop/orders", 80, program.port(), protocol, policies),
            protocol,
        )
    }

    pub(crate) fn with(service: serde_json::Value, protocol: &str) -> Self {
        Self::start(service, protocol, Limits::default(), Limits::default())
    }

    /// Every request is permitted, and the two proxies have these bounds and time limits.
    pub(crate) fn with_limits(
        program: &Program,
        protocol: &str,
        web: Limits,
        orders: Limits,
    ) -> Self {
        let service = service("shop/orders", 80, program.port(), protocol, PERMIT_ALL);
        Self::start(service, protocol, web, orders)
    }

    fn start(service: serde_json::Value, protocol: &str, web: Limits, orders: Limits) -> Self {
        let ca = Ca::new();
        let orders_state = State::new("shop/orders").with_service(service);
        let orders = Node::with_limits(Some(ca.identity("shop/orders")), &orders_state, orders);
        let to = destination(
            "shop/orders",
            80,
            protocol,
            orders.inbound,
            Some("shop/orders"),
        );
        let web_state = State::new("shop/web").with_destination(to);
        let web = Node::with_limits(Some(ca.identity("shop/web")), &web_state, web);
        Self {
            ca,
            web,
            orders,
            web_state,
        }
    }
}
