//! Gateway API of a cluster: what is read of it ([`attach()`]), and what is said of it ([`report`]).

mod api;
mod attach;
mod report;
mod route;

pub(crate) use self::{
    attach::{Attached, GATEWAY_LABEL, GatewayObjects, attach, is_of_a_gateway},
    report::{GatewayDetails, GatewayStatus},
};
