//! Makes one probe to the program, like the kubelet.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, uri::PathAndQuery};
use merlon_config::{
    causes::chain,
    probe::{Grpc, Handler, HttpGet, Scheme},
};
use reqwest::redirect;
use tokio::net::TcpStream;
use tonic::{client, transport::Endpoint};
use tonic_prost::ProstCodec;

/// Maximum number of redirects, like the kubelet.
const REDIRECTS: usize = 10;
/// How much of a response body is read, like the kubelet. A body that breaks off before is a failure.
const BODY: usize = 10 * 1024;

/// Makes probes, each on its own connection.
#[derive(Debug)]
pub(super) struct ProbeClient {
    http: reqwest::Client,
}

impl ProbeClient {
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        // Follow redirects within the pod only. A redirect to another host is a success, as for the kubelet.
        let redirects = redirect::Policy::custom(|attempt| {
            let first = attempt.previous().first().and_then(|url| url.host_str());
            if attempt.previous().len() > REDIRECTS {
                attempt.error("too many redirects")
            } else if attempt.url().host_str() == first {
                attempt.follow()
            } else {
                attempt.stop()
            }
        });
        let http = reqwest::Client::builder()
            .redirect(redirects)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .http1_only()
            // The kubelet does not verify it either: a probe checks only that the program responds.
            .tls_danger_accept_invalid_certs(true)
            .build()?;
        Ok(Self { http })
    }

    /// Makes the probe at the pod's address.
    ///
    /// # Errors
    /// Why the probe failed.
    pub(super) async fn probe(
        &self,
        handler: &Handler,
        own: IpAddr,
        agent: Option<&HeaderValue>,
    ) -> Result<(), String> {
        match handler {
            Handler::HttpGet(get) => self.http(get, own, agent).await,
            Handler::TcpSocket(tcp) => {
                let opened = TcpStream::connect((own, tcp.port)).await;
                opened.map(drop).map_err(|error| chain(&error))
            }
            Handler::Grpc(grpc) => health(grpc, own).await,
        }
    }

    async fn http(
        &self,
        get: &HttpGet,
        own: IpAddr,
        agent: Option<&HeaderValue>,
    ) -> Result<(), String> {
        let scheme = match get.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        // Without the slash, a path like `@elsewhere/` would change the host.
        let slash = if get.path.starts_with('/') { "" } else { "/" };
        let url = format!(
            "{scheme}://{}{slash}{}",
            SocketAddr::new(own, get.port),
            get.path
        );
        let mut headers = HeaderMap::new();
        if let Some(agent) = agent {
            headers.insert(header::USER_AGENT, agent.clone());
        }
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        let mut seen = Vec::new();
        for (name, value) in &get.headers {
            let name: HeaderName = name
                .parse()
                .map_err(|_| format!("`{name}` is not a valid header name"))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("the value of the header `{name}` is invalid"))?;
            // Explicit headers replace the defaults; a repeated header is sent repeatedly.
            if seen.contains(&name) {
                headers.append(name, value);
            } else {
                headers.insert(name.clone(), value);
                seen.push(name);
            }
        }
        let sent = self.http.get(url).headers(headers).send().await;
        let mut answer = sent.map_err(|error| chain(&error))?;
        let mut read = 0;
        while read < BODY
            && let Some(part) = answer.chunk().await.map_err(|error| chain(&error))?
        {
            read += part.len();
        }
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(format!("the program responded with {status}"))
        }
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

async fn health(grpc: &Grpc, own: IpAddr) -> Result<(), String> {
    let uri = Uri::builder()
        .scheme("http")
        .authority(SocketAddr::new(own, grpc.port).to_string())
        .path_and_query("/")
        .build()
        .map_err(|error| error.to_string())?;
    let channel = Endpoint::from(uri)
        .connect_timeout(Duration::from_secs(60))
        .connect()
        .await
        .map_err(|error| chain(&error))?;
    let mut client = client::Grpc::new(channel);
    client.ready().await.map_err(|error| chain(&error))?;
    let request = tonic::Request::new(HealthCheckRequest {
        service: grpc.service.clone(),
    });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    let answer = client
        .unary(request, path, codec)
        .await
        .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    match answer.into_inner().status {
        SERVING => Ok(()),
        other => Err(format!(
            "the program responded with {}",
            match other {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            }
        )),
    }
}
