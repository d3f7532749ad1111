//! A wire that can misbehave: a relay in the test process through which other proxies reach one sidecar.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
};

use crate::runtime;

/// A relay in front of a sidecar. `MeshBuilder::wire` adds it, `Mesh::wire_to` returns it.
///
/// What passes is mesh TLS, so a wire can withhold, delay and end, but neither read nor write.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    line: Arc<Line>,
    task: tokio::task::JoinHandle<()>,
}

/// What all connections of a wire share.
#[derive(Debug)]
struct Line {
    to: watch::Sender<SocketAddr>,
    /// How it carries bytes. Applies to open and new connections.
    state: watch::Sender<State>,
    /// Grows by one when open connections must end. New connections begin with the current number.
    ends: watch::Sender<(u32, End)>,
    opened: AtomicUsize,
}

/// How a wire carries bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At once.
    Whole,
    /// Ends each new connection with RST at once.
    Cut,
    /// Each direction of each connection carries so many bytes more, then nothing. Nothing is lost.
    Stalled(usize),
    /// One byte in each such period.
    Dripping(Duration),
}

/// How open connections end.
#[derive(Debug, Clone, Copy)]
enum End {
    /// RST to both sides.
    Reset,
    /// RST to the sidecar behind the wire. The caller's side stays open; its bytes are read and lost.
    Forgotten,
}

impl Wire {
    /// A wire to `to`.
    pub(super) fn new(to: SocketAddr) -> Self {
        let listener = {
            let _background = runtime::enter();
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            listener.set_nonblocking(true).expect("a socket option");
            TcpListener::from_std(listener).expect("a listener")
        };
        let address = listener.local_addr().expect("an address");
        let line = Arc::new(Line {
            to: watch::Sender::new(to),
            state: watch::Sender::new(State::Whole),
            ends: watch::Sender::new((0, End::Reset)),
            opened: AtomicUsize::new(0),
        });
        let task = runtime::spawn(accept(listener, Arc::clone(&line)));
        Self {
            address,
            line,
            task,
        }
    }

    /// The address at which callers reach the sidecar.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of connections that it has accepted.
    pub fn connections(&self) -> usize {
        self.line.opened.load(Ordering::Relaxed)
    }

    /// Ends open and new connections with RST, until [`Wire::heal`].
    pub fn cut(&self) {
        self.line.state.send_replace(State::Cut);
        self.end(End::Reset);
    }

    /// Ends open connections with RST. New ones pass.
    pub fn reset(&self) {
        self.end(End::Reset);
    }

    /// Carries `bytes` more in each direction of each connection, new ones included, then nothing, until [`Wire::heal`].
    pub fn stall(&self, bytes: usize) {
        self.line.state.send_replace(State::Stalled(bytes));
    }

    /// Carries so many bytes per second in each direction, until [`Wire::heal`].
    pub fn drip(&self, bytes_per_second: u32) {
        let period = Duration::from_secs(1) / bytes_per_second;
        self.line.state.send_replace(State::Dripping(period));
    }

    /// Lets the sidecar lose its connections without the caller's notice: no FIN, no RST, and what the caller sends is
    /// lost. New connections pass.
    pub fn half_open(&self) {
        self.end(End::Forgotten);
    }

    /// Carries bytes again: what a stall withheld, and new connections.
    pub fn heal(&self) {
        self.line.state.send_replace(State::Whole);
    }

    /// Leads new connections to another address, for a peer that the test controls.
    pub fn lead_to(&self, to: SocketAddr) {
        self.line.to.send_replace(to);
    }

    fn end(&self, how: End) {
        self.line.ends.send_modify(|(count, end)| {
            *count += 1;
            *end = how;
        });
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, line: Arc<Line>) {
    while let Ok((caller, _)) = listener.accept().await {
        line.opened.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(carry(caller, Arc::clone(&line)));
    }
}

async fn carry(mut caller: TcpStream, line: Arc<Line>) {
    let mut ends = line.ends.subscribe();
    if *line.state.borrow() == State::Cut {
        return reset(&caller);
    }
    let to = *line.to.borrow();
    let Ok(mut sidecar) = TcpStream::connect(to).await else {
        return reset(&caller);
    };
    let _ = caller.set_nodelay(true);
    let _ = sidecar.set_nodelay(true);
    let how = {
        let (from_caller, to_caller) = caller.split();
        let (from_sidecar, to_sidecar) = sidecar.split();
        let there = pump(from_caller, to_sidecar, &line);
        let back = pump(from_sidecar, to_caller, &line);
        tokio::select! {
            // What is sent after the end must not be carried.
            biased;
            _ = ends.changed() => ends.borrow().1,
            carried = async { tokio::try_join!(there, back) } => match carried {
                Ok(_) => return,
                Err(_) => End::Reset,
            },
        }
    };
    reset(&sidecar);
    drop(sidecar);
    if matches!(how, End::Forgotten) {
        let mut lost = [0; 4_096];
        // Until the caller gives up.
        while caller.read(&mut lost).await.is_ok_and(|read| read > 0) {}
    }
    reset(&caller);
}

/// Carries one direction, as the wire's state says, until its end, and passes that end on. Fails when either side does.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, line: &Line) -> std::io::Result<()> {
    let mut state = line.state.subscribe();
    let mut carried = 0;
    let mut buffer = [0; 16_384];
    loop {
        let now = *state.borrow_and_update();
        let most = match now {
            State::Whole | State::Cut => buffer.len(),
            State::Stalled(bytes) => bytes.saturating_sub(carried).min(buffer.len()),
            State::Dripping(_) => 1,
        };
        let (place, _) = buffer.split_at_mut(most);
        let read = tokio::select! {
            biased;
            changed = state.changed() => {
                changed.map_err(std::io::Error::other)?;
                carried = 0;
                continue;
            }
            read = from.read(place), if most > 0 => read?,
        };
        if read == 0 {
            return to.shutdown().await;
        }
        carried += read;
        if let State::Dripping(period) = now {
            tokio::time::sleep(period).await;
        }
        let (bytes, _) = buffer.split_at(read);
        to.write_all(bytes).await?;
    }
}

/// Makes the close of a connection an RST instead of a FIN.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
