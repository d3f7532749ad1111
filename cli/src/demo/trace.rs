//! Finds the access log entries of one request by its trace id.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use aws_lc_rs::rand;
use http::HeaderValue;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::mesh::{Mesh, Workload};
use crate::failure::Failure;

/// A trace (W3C Trace Context) that starts at the demo.
#[derive(Debug)]
pub(crate) struct Trace {
    id: String,
    /// Name, log file and earlier log length of each sidecar.
    logs: Vec<(String, PathBuf, u64)>,
}

impl Trace {
    /// A trace with a random id.
    pub(crate) fn begin(mesh: &Mesh<'_>) -> Result<Self, Failure> {
        let mut random = [0; 16];
        rand::fill(&mut random)
            .map_err(|_| Failure::runtime("the system provides no random numbers"))?;
        let logs = mesh.workloads().map(|workload| {
            let log = mesh.children.log(&workload.sidecar());
            let length = log.metadata().map_or(0, |metadata| metadata.len());
            (workload.name.to_owned(), log, length)
        });
        Ok(Self {
            id: random.iter().map(|byte| format!("{byte:02x}")).collect(),
            logs: logs.to_vec(),
        })
    }

    /// The `traceparent` to send.
    pub(crate) fn header(&self) -> HeaderValue {
        let text = format!(
            "00-{}-{}-01",
            self.id,
            self.id.get(..16).unwrap_or_default()
        );
        // Hexadecimal digits are always a valid header value.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// The inbound log entry of `workload`'s sidecar; null if there is none within 10 seconds.
    pub(crate) async fn inbound(&self, workload: &Workload) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(line) = self.find(workload.name) {
                return line;
            }
            if Instant::now() > deadline {
                return Value::Null;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn find(&self, name: &str) -> Option<Value> {
        let (_, log, before) = self.logs.iter().find(|(own, ..)| own == name)?;
        let mut file = File::open(log).ok()?;
        file.seek(SeekFrom::Start(*before)).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let lines = text.lines().filter(|line| line.contains(&self.id));
        let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line.get("direction").and_then(Value::as_str) == Some("inbound"))
    }
}
