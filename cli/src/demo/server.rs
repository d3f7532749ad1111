//! What the demo's own HTTP servers have in common.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::failure::Failure;

/// Binds, and says where in `addresses_file`, as all of Merlon's programs do.
pub(crate) async fn listen(
    address: SocketAddr,
    addresses_file: &Path,
) -> Result<(TcpListener, SocketAddr), Failure> {
    let failed = |error| Failure::runtime(format!("cannot listen on {address}: {error}"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    write_whole(addresses_file, &json!({ "listen": bound }).to_string())?;
    Ok((listener, bound))
}

/// Writes a file so that a reader finds the old text or the new one, never a part.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error| Failure::runtime(format!("cannot write {}: {error}", path.display()));
    // A leading dot: who watches the folder for resources passes it over.
    let name = path.file_name().unwrap_or_default().display();
    let aside: PathBuf = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&aside, text).map_err(failed)?;
    std::fs::rename(&aside, path).map_err(failed)
}

/// Answers requests until the process is told to end.
pub(crate) async fn serve<A, F>(listener: TcpListener, answer: A) -> Result<(), Failure>
where
    A: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + 'static,
{
    let local = tokio::task::LocalSet::new();
    let accepting = async move {
        loop {
            // Out of descriptors, or a caller that was gone before it was accepted: the next one may do.
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            };
            let answer = answer.clone();
            let connection = async move {
                let service = service_fn(answer);
                // A connection that breaks is its caller's matter.
                let _ = auto::Builder::new(LocalExecutor)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            };
            drop(tokio::task::spawn_local(connection));
        }
    };
    tokio::select! {
        () = local.run_until(accepting) => {}
        () = super::signals::told_to_end() => {}
    }
    Ok(())
}

/// JSON with a status.
pub(crate) fn answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}
