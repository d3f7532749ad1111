//! Both sides of the discovery stream, and replies to inspections.

mod request;
mod response;

use merlon_api::inspection::InspectReply;
use merlon_control_plane::fuzzing::first_report;
use prost::Message as _;

pub(crate) use self::{request::request, response::response};

/// The first message of an inspection stream is a report of a node with a printable id, or ends the stream.
pub(crate) fn inspection_reply(bytes: &[u8]) {
    let Ok(reply) = InspectReply::decode(bytes) else {
        return;
    };
    match first_report(reply) {
        Ok(report) => {
            let id = report.node_id;
            assert!(
                (1..=253).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
            );
        }
        Err(message) => assert!(!message.is_empty()),
    }
}
