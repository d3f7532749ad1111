//! Requests to the administration socket and the administration address.

use std::{net::SocketAddr, path::Path};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::{
    client::{Client, Reply},
    wait::TIMEOUT,
};

/// One request to the Unix socket at `socket`, with a complete response within [`TIMEOUT`].
pub(crate) async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Reply, String> {
    tokio::time::timeout(TIMEOUT, exchange(socket, method, path, body))
        .await
        .unwrap_or_else(|_| Err(format!("{path}: nothing within {TIMEOUT:?}")))
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Reply, String> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| format!("{}: {error}", socket.display()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    Reply::read(response).await
}

/// [`call`], for a JSON response.
pub(crate) async fn json(
    socket: &Path,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Value, String> {
    let reply = call(socket, method, path, body).await?;
    match reply.status {
        StatusCode::OK | StatusCode::CREATED => Ok(reply.json()),
        _ => Err(format!("{path}: {reply:?}")),
    }
}

/// The status and body of a page of an administration address.
pub(super) async fn page(at: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let reply = Client::new(at, "").get("localhost.", path).send().await?;
    Ok((reply.status.as_u16(), reply.text()))
}

/// The sum of the metric `name` in a page of metrics, over all series whose labels contain `labels`; 0 if it has no such
/// series.
///
/// # Panics
/// If the page does not describe the metric: a wrong name must not count as 0.
#[track_caller]
pub(super) fn sum(page: &str, name: &str, labels: &str) -> f64 {
    assert_described(page, name);
    page.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| line.contains(labels))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Asserts that a page of metrics describes this metric.
///
/// # Panics
/// If there is no `# TYPE` line for it.
#[track_caller]
pub(super) fn assert_described(page: &str, name: &str) {
    // OpenMetrics describes a counter without the suffix of its series.
    let family = name.strip_suffix("_total").unwrap_or(name);
    let described = page.lines().any(|line| {
        let rest = line.strip_prefix("# TYPE ");
        rest.is_some_and(|rest| rest.split(' ').next() == Some(family))
    });
    assert!(described, "there is no metric `{name}` in:\n{page}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "# TYPE a counter\na_total{kind=\"x\"} 2\na_total{kind=\"y\"} 3\n# TYPE b gauge\nb 5\n";

    #[test]
    fn a_metric_without_a_series_of_these_labels_is_0() {
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 0.1, "{value}");
        near(sum(PAGE, "a_total", ""), 5.0);
        near(sum(PAGE, "a_total", "kind=\"y\""), 3.0);
        near(sum(PAGE, "a_total", "kind=\"z\""), 0.0);
        near(sum(PAGE, "b", ""), 5.0);
    }

    #[test]
    #[should_panic(expected = "there is no metric `c_total`")]
    fn a_metric_that_the_page_does_not_describe_is_an_error() {
        sum(PAGE, "c_total", "");
    }

    #[test]
    #[should_panic(expected = "connection refused")]
    fn a_page_that_could_not_be_read_is_an_error() {
        sum("connection refused", "a_total", "");
    }
}
