//! The process log: one JSON object per event on standard error.
//!
//! `ts` is RFC 3339 in UTC with milliseconds, `level` is `ERROR` … `TRACE`, `event` is the dotted name of what happened,
//! `target` the module that reports it. The fields of the event follow. A library's event has a free-text `message` in
//! place of `event`.

use std::fmt::{self, Debug};

use jiff::{Timestamp, Unit};
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer, layer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// Sends the process log to standard error from now on. `RUST_LOG` selects the events; `default` applies without it, as
/// `info`. A second call changes nothing.
pub fn to_stderr(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let lines = layer().event_format(JsonLines).with_writer(std::io::stderr);
    // Fails only when the embedding program has set up a log already, which is then used.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init();
}

/// Formats an event as one line of JSON.
#[derive(Debug, Clone, Copy)]
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "the log has the machine's time, like all logs of the machine"
    )]
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let now = Timestamp::now();
        let now = now.round(Unit::Millisecond).unwrap_or(now);
        let mut line = Map::new();
        line.insert("ts".to_owned(), format!("{now:.3}").into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        let ours = metadata.target().starts_with("merlon");
        event.record(&mut Fields {
            line: &mut line,
            message: if ours { "event" } else { "message" },
        });
        line.insert("target".to_owned(), metadata.target().into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Collects an event's fields.
struct Fields<'a> {
    line: &'a mut Map<String, Value>,
    /// The key of the message.
    message: &'static str,
}

impl Fields<'_> {
    fn insert(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "message" => self.message,
            // A field cannot replace what every line has.
            "ts" | "level" | "target" | "event" => return,
            name => name,
        };
        // The text comes first: a field with the same key cannot replace it, or the event would lose its name.
        self.line.entry(name).or_insert(value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// The lines that `log` writes.
    fn lines(log: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let layer = layer().event_format(JsonLines).with_writer(written.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn an_event_is_one_line_with_time_level_name_fields_and_target() {
        let lines = lines(|| {
            tracing::warn!(
                address = "192.0.2.1:80",
                open = 128_u64,
                error = %"two\nlines",
                "connections.limit_reached"
            );
        });
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        let ts = line["ts"].as_str().unwrap();
        assert!(ts.parse::<Timestamp>().is_ok(), "{ts}");
        assert_eq!(ts.len(), "2026-01-02T03:04:05.678Z".len(), "{ts}");
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["event"], "connections.limit_reached");
        assert_eq!(line["address"], "192.0.2.1:80");
        assert_eq!(line["open"], 128);
        assert_eq!(line["error"], "two\nlines");
        assert_eq!(line["target"], "merlon_net::process_log::tests");
    }

    #[test]
    fn a_field_cannot_replace_the_name_of_the_event_or_its_time() {
        let lines = lines(|| tracing::info!(ts = "never", event = "other", "process.started"));
        assert_eq!(lines[0]["event"], "process.started");
        assert_ne!(lines[0]["ts"], "never");
    }

    #[test]
    fn a_field_named_message_does_not_replace_the_name_of_the_event() {
        let lines = lines(|| {
            tracing::info!(message = "a field", "process.started");
            tracing::info!(target: "hyper", message = "a field", "a free text");
        });
        assert_eq!(lines[0]["event"], "process.started");
        assert_eq!(lines[1]["message"], "a free text");
    }

    #[test]
    fn the_text_of_a_library_is_a_message_and_no_event() {
        let lines = lines(|| tracing::info!(target: "hyper", "a free text"));
        assert_eq!(lines[0]["message"], "a free text");
        assert!(lines[0].get("event").is_none());
    }
}
