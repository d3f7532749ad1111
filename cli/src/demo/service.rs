//! `merlon demo-service`: the demo's three programs. They contain no code for identities, tokens or policies: the mesh
//! handles all three.
//!
//! `web` calls `orders`, `orders` calls `payments`, each through its own sidecar.

use std::{cell::Cell, convert::Infallible, net::SocketAddr, path::PathBuf, rc::Rc};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    server::{self, answer},
    wire::{self, request},
};
use crate::failure::Failure;

/// Run one of the demo's programs.
#[derive(Debug, Args)]
pub(crate) struct ServiceArgs {
    name: Name,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    addresses_file: PathBuf,
    /// Outbound address of its sidecar.
    #[arg(long)]
    sidecar: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Web,
    Orders,
    Payments,
}

struct Program {
    name: Name,
    sidecar: SocketAddr,
    /// Number of requests received, which shows that a refused request did not arrive.
    requests: Cell<u64>,
}

/// The path at which a program reports how many requests it has received.
pub(crate) const REQUEST_COUNT: &str = "/demo/seen";

pub(crate) async fn run(args: &ServiceArgs) -> Result<(), Failure> {
    let (listener, _) = server::listen(args.listen, &args.addresses_file).await?;
    let program = Rc::new(Program {
        name: args.name,
        sidecar: args.sidecar,
        requests: Cell::new(0),
    });
    server::serve(listener, move |request| {
        let program = Rc::clone(&program);
        async move { Ok::<_, Infallible>(program.answer(request).await) }
    })
    .await
}

impl Program {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == REQUEST_COUNT {
            return answer(StatusCode::OK, &json!({"seen": self.requests.get()}));
        }
        self.requests.set(self.requests.get().saturating_add(1));
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (self.name, &method, parts.as_slice()) {
            (Name::Web, &Method::POST, ["checkout"]) => self.checkout(request).await,
            (Name::Web, &Method::GET, ["orders", id]) => self.look_up(&request, id).await,
            (Name::Web, &Method::GET, [""]) => answer(
                StatusCode::OK,
                &json!({"service": "web", "try": ["GET /orders/7", "POST /checkout"]}),
            ),
            (Name::Orders, &Method::GET, ["orders", id]) => answer(
                StatusCode::OK,
                &json!({"service": "orders", "id": id, "item": "battlement", "quantity": 1}),
            ),
            (Name::Orders, &Method::POST, ["orders"]) => self.order(request).await,
            (Name::Orders, &Method::DELETE, ["orders", id]) => {
                answer(StatusCode::OK, &json!({"service": "orders", "deleted": id}))
            }
            (Name::Payments, &Method::POST, ["charges"]) => answer(
                StatusCode::CREATED,
                &json!({"service": "payments", "charge": self.requests.get(), "state": "charged"}),
            ),
            _ => answer(
                StatusCode::NOT_FOUND,
                &json!({"error": format!("no handler for {method} {path}")}),
            ),
        }
    }

    async fn checkout(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let passed = PassedHeaders::of(&request);
        let body = match json_body(request).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        self.call("POST", "orders.shop", "/orders", &passed, Some(&body))
            .await
    }

    async fn look_up(&self, request: &Request<Incoming>, id: &str) -> Response<Full<Bytes>> {
        let passed = PassedHeaders::of(request);
        self.call(
            "GET",
            "orders.shop",
            &format!("/orders/{id}"),
            &passed,
            None,
        )
        .await
    }

    async fn order(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let passed = PassedHeaders::of(&request);
        let body = match json_body(request).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let charge = json!({"item": body.get("item"), "quantity": body.get("quantity")});
        self.call(
            "POST",
            "payments.payments",
            "/charges",
            &passed,
            Some(&charge),
        )
        .await
    }

    /// Calls another service through the sidecar, and wraps its response.
    async fn call(
        &self,
        method: &str,
        service: &str,
        path: &str,
        passed: &PassedHeaders,
        body: Option<&Value>,
    ) -> Response<Full<Bytes>> {
        let mut request = request(method, service, path, None, body);
        for (name, value) in &passed.headers {
            request.headers_mut().insert(name, value.clone());
        }
        let own = match self.name {
            Name::Web => "web",
            Name::Orders => "orders",
            Name::Payments => "payments",
        };
        match wire::send(self.sidecar, request).await {
            Ok(reply) => answer(
                StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY),
                &json!({"service": own, "called": service, "answer": reply.json()}),
            ),
            Err(error) => answer(
                StatusCode::BAD_GATEWAY,
                &json!({"service": own, "called": service, "error": error.to_string()}),
            ),
        }
    }
}

/// The headers that a program passes on: the user's token and the trace context.
struct PassedHeaders {
    headers: Vec<(header::HeaderName, header::HeaderValue)>,
}

impl PassedHeaders {
    fn of(request: &Request<Incoming>) -> Self {
        let wanted = [
            header::AUTHORIZATION,
            header::HeaderName::from_static("traceparent"),
            header::HeaderName::from_static("tracestate"),
        ];
        let found = wanted.into_iter().filter_map(|name| {
            let value = request.headers().get(&name)?.clone();
            Some((name, value))
        });
        Self {
            headers: found.collect(),
        }
    }
}

async fn json_body(request: Request<Incoming>) -> Result<Value, Response<Full<Bytes>>> {
    let bad_request = || {
        answer(
            StatusCode::BAD_REQUEST,
            &json!({"error": "the body is not JSON"}),
        )
    };
    let body = Limited::new(request.into_body(), 64 << 10)
        .collect()
        .await
        .map_err(|_| bad_request())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|_| bad_request())
}
