//! Carries the bytes of a tunnel or an upgraded connection to its end.

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{exchange::Exchange, open_permit::OpenPermit, worker_context::ConnectionGuard};
use crate::{
    protocol::{revocation::Revocation, splice::copy_both, websocket},
    upstream::PoolGuard,
};

/// Copies bytes in both directions until both sides or `open_permit` have ended, then concludes the exchange.
pub(crate) async fn relay(
    downstream: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    open_permit: Option<&OpenPermit>,
    mut exchange: Box<Exchange>,
) {
    let never = Revocation::default();
    let revocation = open_permit.map_or(&never, |open_permit| &open_permit.revocation);
    let (copied, whole) = copy_both(downstream, upstream, revocation).await;
    exchange.set_bytes_in(copied.received);
    exchange.bytes_out = copied.sent;
    if let Some(denial) = open_permit.and_then(OpenPermit::denial) {
        exchange.end_with(denial);
    }
    exchange.conclude(!whole);
}

/// Both ends of a tunnel that is about to start.
#[derive(Debug)]
pub(crate) struct Switched {
    pub(crate) upgrade: websocket::UpgradeRequest,
    pub(crate) upstream: OnUpgrade,
    pub(crate) pooled: Option<PoolGuard>,
    pub(crate) open_permit: Option<Rc<OpenPermit>>,
}

/// Carries an upgraded connection once both sides have switched, until both have ended or policy no longer permits it.
pub(crate) fn upgraded(switched: Switched, exchange: Box<Exchange>) {
    let Switched {
        upgrade,
        upstream,
        pooled,
        open_permit,
    } = switched;
    // hyper's connection ends with the switch, and this begins before it does.
    let connection = ConnectionGuard::new(&exchange.local);
    tokio::task::spawn_local(async move {
        match tokio::join!(upgrade.downstream, upstream) {
            (Ok(downstream), Ok(upstream)) => {
                let (downstream, upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
                relay(downstream, upstream, open_permit.as_deref(), exchange).await;
            }
            _ => exchange.conclude(true),
        }
        drop((pooled, connection));
    });
}
