//! Admission: a pod gets its sidecar, and a resource that would not be right is refused before it is there.
//!
//! The API server calls, over TLS with a certificate of an authority of our own (`certificate`), whose root the leading
//! replica writes into the two webhook configurations (`bundle`).

mod body;
mod bundle;
mod certificate;
mod listen;
mod review;
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
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    body::{MemoryBudget, Reservation},
    bundle::CaBundles,
    certificate::Certificate,
    review::{AdmissionResponse, Review},
    work_pool::WorkPool,
};
use crate::{
    cluster::watch::Contact,
    config::WebhookConfig,
    source::kubernetes::DryRun,
    telemetry::metrics::{Metrics, WebhookLabel},
};

/// Each judging compiles the mesh, an injection looks at a pod alone and does not wait for one; whoever reaches the port
/// may ask.
const AT_ONCE: usize = 2;
/// With that for the body below the time-out of the webhook configuration, so that it is we who say why.
const PATIENCE: Duration = Duration::from_secs(6);

/// What answers the API server.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) dry_run: DryRun,
    pub(crate) metrics: Metrics,
    settings: Live<InjectionSettings>,
    judging: WorkPool,
    injecting: WorkPool,
    budget: MemoryBudget,
}

/// What the rest of a control plane lends.
pub(crate) struct WebhookDeps<'a> {
    pub(crate) client: Client,
    pub(crate) namespace: &'a str,
    pub(crate) dry_run: DryRun,
    pub(crate) leads: watch::Receiver<bool>,
    pub(crate) contact: Contact,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// Begins to serve on `listener`, and returns.
///
/// # Errors
/// Everything that is wrong in the file of settings.
pub(crate) fn start(
    config: &WebhookConfig,
    listener: TcpListener,
    deps: WebhookDeps<'_>,
) -> Result<(), Report> {
    let settings = InjectionSettings::load(&config.injection)?;
    let judging = WorkPool::new(AT_ONCE);
    let hooks = Arc::new(Webhook {
        dry_run: deps.dry_run,
        metrics: deps.metrics.clone(),
        settings: Live::new(settings),
        injecting: judging.sharing_large(AT_ONCE),
        judging,
        budget: MemoryBudget::default(),
    });
    let certificate = Certificate::new(
        deps.client.clone(),
        deps.namespace,
        deps.contact.clone(),
        deps.leads.clone(),
    );
    let bundles = CaBundles {
        client: deps.client,
        leads: deps.leads,
        trusted: certificate.trusted(),
        contact: deps.contact,
    };
    let shutdown = || deps.shutdown.clone();
    let shown = certificate.shown();
    deps.tasks.spawn(certificate.run(shutdown()));
    deps.tasks.spawn(bundles.run(shutdown()));
    let followed = follow(config.injection.clone(), Arc::clone(&hooks), shutdown());
    deps.tasks.spawn(followed);
    let routes = Router::new()
        .route("/inject", post(injected))
        .route("/validate", post(validated))
        .with_state(hooks);
    deps.tasks.spawn(listen::serve(
        listener,
        shown,
        routes,
        deps.metrics,
        shutdown(),
    ));
    Ok(())
}

/// Takes over every change of the settings that is right.
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
                "merlon: the system has no random numbers to give".to_owned(),
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
    let places = &hooks.injecting;
    answered(&hooks, ("inject", places), request, work).await
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
    let places = &hooks.judging;
    answered(&hooks, ("validate", places), request, work).await
}

/// Reads a question and has it answered, both of it in a place for work: what a body means takes many times its memory.
async fn answered(
    hooks: &Arc<Webhook>,
    (webhook, places): (&'static str, &WorkPool),
    request: Request,
    work: impl FnOnce(&Webhook, &mut Review) -> AdmissionResponse + Send + 'static,
) -> Response {
    let body = match hooks.budget.read(request).await {
        Ok(body) => body,
        Err(error) => return error.answer(),
    };
    let of_all = Arc::clone(hooks);
    let done = places.run(body.large, move || {
        let mut reservation = body.reservation;
        let mut review = match Review::read(&body.bytes) {
            Ok(review) => review,
            Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        };
        let answer = work(&of_all, &mut review);
        of_all.log_review(webhook, &review, &answer);
        // No more than is reserved.
        let text = answer.to(&review).into_boxed_str();
        match reservation.resize(text.len()) {
            Ok(()) => reply(text, reservation),
            Err(error) => error.answer(),
        }
    });
    let unavailable = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match tokio::time::timeout(PATIENCE, done).await {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            unavailable("merlon: it could not be judged; the control plane's log says why\n")
        }
        Err(_) => {
            unavailable("merlon: the control plane is busy with other resources; try again\n")
        }
    }
}

/// An answer that keeps its memory until it was sent.
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
            // Some of it is as long as whoever asks likes.
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
