//! Gateway API in a cluster: the resources read from it ([`attach()`]), and the status written to it ([`report`]).

mod api;
mod attach;
mod report;
mod route;

pub(crate) use self::{
    attach::{Attached, GATEWAY_LABEL, GatewayObjects, attach, is_of_a_gateway},
    report::{GatewayDetails, GatewayStatus},
};
