//! Spans by OTLP if the environment configures an exporter.

use opentelemetry::{
    global,
    trace::{Span as _, Status, Tracer as _},
};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};

const NAME: &str = "merlon-control-plane";

/// Exports spans until it is dropped, if one of the standard variables sets a collector.
#[derive(Debug)]
pub(crate) struct Exporter(Option<SdkTracerProvider>);

impl Exporter {
    /// Must be called in the runtime that runs the export.
    pub(crate) fn from_environment() -> Self {
        let named = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        let endpoint =
            named("OTEL_EXPORTER_OTLP_ENDPOINT") || named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let disabled =
            std::env::var("OTEL_SDK_DISABLED").is_ok_and(|v| v.eq_ignore_ascii_case("true"));
        if !endpoint || disabled {
            return Self(None);
        }
        let exporter = match opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .build()
        {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::error!(error = %error, "otlp.refused");
                return Self(None);
            }
        };
        let mut resource = Resource::builder();
        if !named("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(NAME);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        global::set_tracer_provider(provider.clone());
        Self(Some(provider))
    }

    /// Flushes the remaining spans. Blocks on the collector, so do not call it on a thread of the runtime.
    pub(crate) fn shutdown(&self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(error = %error, "otlp.lost");
        }
    }
}

/// Starts a span, which ends on drop. It costs almost nothing without an exporter.
pub(crate) fn span(name: &'static str) -> Span {
    Span(global::tracer(NAME).start(name))
}

/// An open span.
#[derive(Debug)]
pub(crate) struct Span(global::BoxedSpan);

impl Span {
    /// Marks the span as failed.
    pub(crate) fn failed(mut self, why: &str) {
        self.0.set_status(Status::error(why.to_owned()));
    }

    /// Sets an attribute.
    pub(crate) fn note(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.0
            .set_attribute(opentelemetry::KeyValue::new(key, value));
    }
}
