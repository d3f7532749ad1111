//! Admission: a pod gets its sidecar, and a resource that would not be right is refused before it is there.
//!
//! The API server calls, over TLS with a certificate of an authority of our own (`certificate`), whose root the leading
//! replica writes into the two webhook configurations (`bundle`).

mod body;
mod bundle;
mod certificate;
mod judging;
mod listen;
mod review;

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use kube::Client;
use merlon_config::{injection::InjectionSettings, live::Live, report::Report, watch::watch_dir};
use merlon_inject::{Injection, hook_key, inject};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    body::Room,
    bundle::Bundles,
    certificate::Certificate,
    judging::Judging,
    review::{Answer, Review},
};
use crate::{
    config::WebhookConfig,
    kubernetes::{Contact, Judge},
    metrics::{Metrics, WebhookLabel},
};

/// Each judging compiles the mesh; whoever reaches the port may ask.
const JUDGED_AT_ONCE: usize = 2;
/// With that for the body below the time-out of the webhook configuration, so that it is we who say why.
const PATIENCE: Duration = Duration::from_secs(6);

/// What answers the API server.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) judge: Judge,
    pub(crate) metrics: Metrics,
    settings: Live<InjectionSettings>,
    judging: Judging,
    room: Room,
}

/// What the rest of a control plane lends.
pub(crate) struct Lent<'a> {
    pub(crate) client: Client,
    pub(crate) namespace: &'a str,
    pub(crate) judge: Judge,
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
    lent: Lent<'_>,
) -> Result<(), Report> {
    let settings = InjectionSettings::load(&config.injection)?;
    let hooks = Arc::new(Webhook {
        judge: lent.judge,
        metrics: lent.metrics.clone(),
        settings: Live::new(settings),
        judging: Judging::new(JUDGED_AT_ONCE),
        room: Room::default(),
    });
    let certificate = Certificate::new(
        lent.client.clone(),
        lent.namespace,
        lent.contact.clone(),
        lent.leads.clone(),
    );
    let bundles = Bundles {
        client: lent.client,
        leads: lent.leads,
        trusted: certificate.trusted(),
        contact: lent.contact,
    };
    let shutdown = || lent.shutdown.clone();
    let shown = certificate.shown();
    lent.tasks.spawn(certificate.run(shutdown()));
    lent.tasks.spawn(bundles.run(shutdown()));
    let followed = follow(config.injection.clone(), Arc::clone(&hooks), shutdown());
    lent.tasks.spawn(followed);
    let routes = Router::new()
        .route("/inject", post(injected))
        .route("/validate", post(validated))
        .with_state(hooks);
    lent.tasks.spawn(listen::serve(
        listener,
        shown,
        routes,
        lent.metrics,
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
                    settings = merlon_inject::mark(&settings),
                    "injection.changed"
                );
                hooks.settings.publish(settings);
            }
            Err(report) => {
                tracing::error!(problems = %report, "injection.refused: the settings before stay in force");
            }
        }
    }
}

async fn injected(State(hooks): State<Arc<Webhook>>, request: Request) -> Response {
    let review = match hooks.review(request).await {
        Ok(review) => review,
        Err(answer) => return answer,
    };
    let settings = hooks.settings.load_full();
    let Ok(key) = hook_key() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let answer = match inject(&review.object, &review.namespace, &settings, &key) {
        Ok(Injection::Unchanged(_)) => Answer::allowed(),
        Ok(Injection::Changed { object, warnings }) => {
            Answer::changed(&review.object, &object, warnings)
        }
        Err(refused) => Answer::refused(format!("merlon: {refused}")),
    };
    hooks.tell("inject", &review, &answer);
    reply(&review, &answer)
}

async fn validated(State(hooks): State<Arc<Webhook>>, request: Request) -> Response {
    let review = match hooks.review(request).await {
        Ok(review) => review,
        Err(answer) => return answer,
    };
    let answer = if review.changes_nothing() {
        Answer::allowed()
    } else {
        match tokio::time::timeout(PATIENCE, hooks.judged(&review)).await {
            Ok(answer) => answer,
            Err(_) => Answer::refused(
                "merlon: the control plane is busy with other resources; try again".to_owned(),
            ),
        }
    };
    hooks.tell("validate", &review, &answer);
    reply(&review, &answer)
}

fn reply(review: &Review, answer: &Answer) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, answer.to(review)).into_response()
}

impl Webhook {
    async fn review(&self, request: Request) -> Result<Review, Response> {
        let body = self.room.read(request).await?;
        Review::read(&body.bytes)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response())
    }

    async fn judged(&self, review: &Review) -> Answer {
        let (judge, kind, object) = (
            self.judge.clone(),
            review.kind.clone(),
            review.object.clone(),
        );
        let judged = self.judging.run(move || judge.would(&kind, object)).await;
        match judged {
            Some(Ok(warnings)) => Answer::allowed().with(warnings),
            Some(Err(why)) => Answer::refused(why),
            None => Answer::refused(
                "merlon: it could not be judged; the control plane's log says why".to_owned(),
            ),
        }
    }

    fn tell(&self, webhook: &'static str, review: &Review, answer: &Answer) {
        let result = answer.result();
        let label = WebhookLabel { webhook, result };
        self.metrics.webhook_requests.get_or_create(&label).inc();
        if let Some(reason) = answer.reason() {
            tracing::info!(
                webhook,
                kind = review.kind,
                namespace = review.namespace,
                name = review.name,
                user = review.user,
                reason,
                "admission.refused"
            );
        }
    }
}
