//! Admission webhooks: inject the sidecar into pods, and refuse invalid resources.
//!
//! The API server connects over TLS. The certificate comes from a separate CA (`certificate`), and the leading replica
//! writes its root into the two webhook configurations (`bundle`). It connects to a ready replica; while there is none, to
//! one that serves the webhooks (`endpoint`).

pub(crate) mod body;
mod bundle;
mod certificate;
mod endpoint;
mod listen;
pub(crate) mod review;
mod work_pool;

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use kube::Client;
use merlon_config::{injection::InjectionSettings, live::Live, report::Report, watch::watch_dir};
use merlon_inject::{HookKeys, Injection, inject};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use self::{
    body::{MemoryBudget, Reservation},
    bundle::CaBundles,
    certificate::Certificate,
    endpoint::OwnEndpoint,
    review::{AdmissionResponse, Review},
    work_pool::WorkPool,
};
use crate::{
    cluster::watch::Cluster,
    config::WebhookConfig,
    limits::WebhookLimits,
    source::kubernetes::DryRun,
    tasks::Tasks,
    telemetry::metrics::{Metrics, WebhookLabel},
};

/// The state of both webhooks.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) dry_run: DryRun,
    pub(crate) metrics: Metrics,
    /// How long a request may take after its body was read.
    timeout: Duration,
    settings: Live<InjectionSettings>,
    validations: WorkPool,
    injections: WorkPool,
    budget: MemoryBudget,
}

/// The parts of the control plane that the webhooks need.
pub(crate) struct WebhookDeps<'a> {
    pub(crate) client: Client,
    pub(crate) namespace: &'a str,
    /// The name of this replica's pod.
    pub(crate) replica: &'a str,
    pub(crate) cluster: Cluster,
    pub(crate) dry_run: DryRun,
    pub(crate) leads: watch::Receiver<bool>,
    pub(crate) metrics: Metrics,
    pub(crate) limits: WebhookLimits,
    pub(crate) tasks: Tasks,
    pub(crate) shutdown: CancellationToken,
}

/// Starts to serve on both listeners, and returns. The API server connects to `fallback` while no replica is ready.
///
/// # Errors
/// All problems of the settings file.
pub(crate) fn start(
    config: &WebhookConfig,
    (listener, fallback): (TcpListener, TcpListener),
    deps: WebhookDeps<'_>,
) -> Result<(), Report> {
    let settings = InjectionSettings::load(&config.injection)?;
    let limits = deps.limits;
    let validations = WorkPool::new(limits.requests.max(1));
    let hooks = Arc::new(Webhook {
        dry_run: deps.dry_run,
        metrics: deps.metrics.clone(),
        timeout: limits.request,
        settings: Live::new(settings),
        injections: validations.sharing_large(limits.requests.max(1)),
        validations,
        budget: MemoryBudget::new(limits),
    });
    let contact = deps.cluster.contact.clone();
    contact.set_webhooks_waiting(Some("the webhooks have no certificate yet".to_owned()));
    let certificate = Certificate::new(
        deps.client.clone(),
        deps.namespace,
        contact.clone(),
        deps.leads.clone(),
        limits,
    );
    let bundles = CaBundles {
        client: deps.client.clone(),
        leads: deps.leads,
        trusted: certificate.trusted(),
        contact,
        limits,
    };
    let tls_config = certificate.tls_config();
    let endpoint = OwnEndpoint {
        client: deps.client,
        namespace: deps.namespace.to_owned(),
        replica: deps.replica.to_owned(),
        port: fallback.local_addr().map_or(0, |address| address.port()),
        cluster: deps.cluster,
        tls_config: tls_config.clone(),
        limits,
        pod: None,
        added: false,
        unlisted: CancellationToken::new(),
    };
    let unlisted = endpoint.unlisted.clone();
    let shutdown = || deps.shutdown.clone();
    let tasks = &deps.tasks;
    tasks.spawn_lasting("certificate of the webhooks", certificate.run(shutdown()));
    tasks.spawn_lasting("`caBundle` of the webhooks", bundles.run(shutdown()));
    tasks.spawn_lasting("endpoint of the webhooks", endpoint.run(shutdown()));
    let followed = follow(config.injection.clone(), Arc::clone(&hooks), shutdown());
    tasks.spawn_lasting("settings of the injector", followed);
    let routes = Router::new()
        .route("/inject", post(injected))
        .route("/validate", post(validated))
        .with_state(hooks);
    let served = listen::serve(
        vec![listener, fallback],
        limits,
        tls_config,
        routes,
        deps.metrics,
        (shutdown(), unlisted),
    );
    tasks.spawn_lasting("webhooks", served);
    Ok(())
}

/// Reloads the settings after every valid change.
async fn follow(file: std::path::PathBuf, hooks: Arc<Webhook>, shutdown: CancellationToken) {
    let folder = file.parent().filter(|path| !path.as_os_str().is_empty());
    let mut changes = watch_dir(folder.unwrap_or(Path::new(".")));
    loop {
        tokio::select! {
            () = changes.next() => {}
            () = shutdown.cancelled() => return,
        }
        match InjectionSettings::load(&file) {
            Ok(settings) if settings == **hooks.settings.load() => {}
            Ok(settings) => {
                tracing::info!(
                    settings = merlon_inject::settings_hash(&settings),
                    "injection.changed"
                );
                hooks.settings.publish(settings);
            }
            Err(report) => {
                tracing::error!(problems = %report, "injection.refused");
            }
        }
    }
}

async fn injected(State(hooks): State<Arc<Webhook>>, request: Request) -> Response {
    let work = |hooks: &Webhook, review: &mut Review| {
        let settings = hooks.settings.load_full();
        let owner = [&*review.kind, &review.namespace, &review.name];
        let Ok(key) = HookKeys::Random.of(owner) else {
            return AdmissionResponse::refused(
                "merlon: the system's random number generator failed".to_owned(),
            );
        };
        match inject(&review.object, &review.namespace, &settings, &key) {
            Ok(Injection::Unchanged(_)) => AdmissionResponse::allowed(),
            Ok(Injection::Changed { object, warnings }) => {
                AdmissionResponse::changed(&review.object, &object, warnings)
            }
            Err(refused) => AdmissionResponse::refused(format!("merlon: {refused}")),
        }
    };
    let pool = &hooks.injections;
    handle(&hooks, ("inject", pool), request, work).await
}

async fn validated(State(hooks): State<Arc<Webhook>>, request: Request) -> Response {
    let work = |hooks: &Webhook, review: &mut Review| {
        if review.changes_nothing() {
            return AdmissionResponse::allowed();
        }
        match hooks
            .dry_run
            .check(&review.kind, std::mem::take(&mut review.object))
        {
            Ok(warnings) => AdmissionResponse::allowed().with(warnings),
            Err(why) => AdmissionResponse::refused(why),
        }
    };
    let pool = &hooks.validations;
    handle(&hooks, ("validate", pool), request, work).await
}

/// Reads a request and answers it. Both use a slot of the pool, because a parsed body takes many times its memory.
async fn handle(
    hooks: &Arc<Webhook>,
    (webhook, pool): (&'static str, &WorkPool),
    request: Request,
    work: impl FnOnce(&Webhook, &mut Review) -> AdmissionResponse + Send + 'static,
) -> Response {
    let body = match hooks.budget.read(request).await {
        Ok(body) => body,
        Err(error) => return error.answer(),
    };
    let shared = Arc::clone(hooks);
    let done = pool.run(body.large, move || {
        let mut reservation = body.reservation;
        let mut review = match Review::read(&body.bytes) {
            Ok(review) => review,
            Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        };
        let answer = work(&shared, &mut review);
        shared.log_review(webhook, &review, &answer);
        // A boxed text has no spare capacity, so its length is the memory that it takes.
        let text = answer.to(&review).into_boxed_str();
        match reservation.resize(text.len()) {
            Ok(()) => reply(text, reservation),
            Err(error) => error.answer(),
        }
    });
    let unavailable = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match tokio::time::timeout(hooks.timeout, done).await {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            unavailable("merlon: the request could not be processed; see the control plane's log\n")
        }
        Err(_) => unavailable("merlon: the control plane is busy with other requests; retry\n"),
    }
}

/// A response that keeps its reservation until it is sent.
fn reply(text: Box<str>, reservation: Reservation) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    let text = ReservedText {
        text,
        _reservation: reservation,
    };
    (kind, Body::from(Bytes::from_owner(text))).into_response()
}

/// Bytes with the memory that is reserved for them.
struct ReservedText {
    text: Box<str>,
    _reservation: Reservation,
}

impl AsRef<[u8]> for ReservedText {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Webhook {
    fn log_review(&self, webhook: &'static str, review: &Review, answer: &AdmissionResponse) {
        let result = answer.result();
        let label = WebhookLabel { webhook, result };
        self.metrics.webhook_requests.get_or_create(&label).inc();
        if let Some(reason) = answer.reason() {
            // The client chooses the length of these texts.
            let shown = |text: &str| text.chars().take(1_000).collect::<String>();
            tracing::info!(
                webhook,
                kind = shown(&review.kind),
                namespace = shown(&review.namespace),
                name = shown(&review.name),
                user = shown(&review.user),
                reason = shown(reason),
                "admission.refused"
            );
        }
    }
}
