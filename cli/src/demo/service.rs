//! `merlon demo-service`: the demo's three programs. They know nothing of identities, tokens or policies; that is the point.
//!
//! `web` calls `orders`, `orders` calls `payments`, each through the sidecar beside it.

use std::{cell::Cell, convert::Infallible, net::SocketAddr, path::PathBuf, rc::Rc};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    server::{self, answer},
    wire::{self, ask},
};
use crate::failure::Failure;

/// Runs one of the demo's programs.
#[derive(Debug, Args)]
pub(crate) struct ServiceArgs {
    name: Name,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    addresses_file: PathBuf,
    /// The outbound address of the sidecar beside it.
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
    /// Requests that came in, so that the demo can show that a refused one did not.
    seen: Cell<u64>,
}

/// Where a program says how many requests it has seen.
pub(crate) const SEEN: &str = "/demo/seen";

pub(crate) async fn run(args: &ServiceArgs) -> Result<(), Failure> {
    let (listener, _) = server::listen(args.listen, &args.addresses_file).await?;
    let program = Rc::new(Program {
        name: args.name,
        sidecar: args.sidecar,
        seen: Cell::new(0),
    });
    server::serve(listener, move |request| {
        let program = Rc::clone(&program);
        async move { Ok::<_, Infallible>(program.answer(request).await) }
    })
    .await
}

impl Program {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == SEEN {
            return answer(StatusCode::OK, &json!({"seen": self.seen.get()}));
        }
        self.seen.set(self.seen.get().saturating_add(1));
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
                &json!({"service": "payments", "charge": self.seen.get(), "state": "charged"}),
            ),
            _ => answer(
                StatusCode::NOT_FOUND,
                &json!({"error": format!("{method} {path} is nothing that this program knows")}),
            ),
        }
    }

    async fn checkout(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let onward = Onward::of(&request);
        let body = match json_body(request).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        self.call("POST", "orders.shop", "/orders", &onward, Some(&body))
            .await
    }

    async fn look_up(&self, request: &Request<Incoming>, id: &str) -> Response<Full<Bytes>> {
        let onward = Onward::of(request);
        self.call(
            "GET",
            "orders.shop",
            &format!("/orders/{id}"),
            &onward,
            None,
        )
        .await
    }

    async fn order(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let onward = Onward::of(&request);
        let body = match json_body(request).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let charge = json!({"item": body.get("item"), "quantity": body.get("quantity")});
        self.call(
            "POST",
            "payments.payments",
            "/charges",
            &onward,
            Some(&charge),
        )
        .await
    }

    /// Calls another service through the sidecar, and wraps what it said.
    async fn call(
        &self,
        method: &str,
        service: &str,
        path: &str,
        onward: &Onward,
        body: Option<&Value>,
    ) -> Response<Full<Bytes>> {
        let mut request = ask(method, service, path, None, body);
        for (name, value) in &onward.headers {
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

/// What a program passes on: whose request it is, and which trace it belongs to.
struct Onward {
    headers: Vec<(header::HeaderName, header::HeaderValue)>,
}

impl Onward {
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
    let unfit = || {
        answer(
            StatusCode::BAD_REQUEST,
            &json!({"error": "the body is not JSON"}),
        )
    };
    let body = Limited::new(request.into_body(), 64 << 10)
        .collect()
        .await
        .map_err(|_| unfit())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|_| unfit())
}
