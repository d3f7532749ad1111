use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use merlon_test_support::wait;
use tokio::sync::watch;

/// An in-memory access log whose lines can be awaited.
#[derive(Clone)]
pub(crate) struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    grown: watch::Sender<usize>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            text: Arc::default(),
            grown: watch::Sender::new(0),
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text.lock().unwrap().extend_from_slice(bytes);
        self.grown.send_modify(|size| *size += bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        let text = self.text.lock().unwrap();
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("each line is one JSON object"))
            .collect()
    }

    /// Whether the writer has ended: this is the only handle left.
    pub(crate) fn is_complete(&self) -> bool {
        Arc::strong_count(&self.text) == 1
    }

    /// Waits for the first line that matches.
    pub(crate) async fn line(
        &self,
        matches: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let mut grown = self.grown.subscribe();
        loop {
            grown.mark_unchanged();
            if let Some(line) = self.lines().into_iter().find(|line| matches(line)) {
                return line;
            }
            let waited = tokio::time::timeout(wait::TIMEOUT, grown.changed()).await;
            waited
                .unwrap_or_else(|_| panic!("no line matches in {:#?}", self.lines()))
                .unwrap();
        }
    }

    /// Waits for the first line of a request to `path`.
    pub(crate) async fn for_path(&self, path: &str) -> serde_json::Value {
        self.line(|line| line["path"] == path).await
    }
}
