//! What the fuzz targets in `fuzz/` call of the private modules. Not part of the interface.

use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;

use crate::{
    facts::{HttpFacts, NoHeaders, RequestFacts, RequestKind},
    matcher::{Gathered, Names},
    validate::{self, RouteMatch},
};

/// Whether a `Content-Type` is JSON in UTF-8, and its media type without parameters.
pub fn media_type(content_type: &str) -> (bool, String) {
    (
        validate::is_json(content_type),
        validate::essence(content_type),
    )
}

/// The values of the query parameters `names` as policies read them; `None` if the query is refused.
pub fn query(names: &[&str], query: &str) -> Option<Vec<Option<String>>> {
    let names = Names {
        headers: Vec::new(),
        query: names.iter().map(|name| (*name).into()).collect(),
    };
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let facts = RequestFacts {
        kind: RequestKind::Http(HttpFacts {
            host: "",
            method: "GET",
            path: "/",
            query: Some(query),
            route: &RouteMatch::NONE,
            headers: &NoHeaders,
        }),
        source_ip: address,
        client_ip: address,
        port: 80,
        now: Timestamp::UNIX_EPOCH,
        user: None,
        tls: None,
    };
    let gathered = Gathered::new(&names, &facts).ok()?;
    let value = |slot| gathered.query.get(slot).map(str::to_owned);
    Some((0..names.query.len()).map(value).collect())
}
