//! The result of each step: as text while the demo runs, or as JSON at the end.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::output::{Output, eprint_line, print_json, print_line};

/// The result of one step.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    expected: String,
    observed: String,
    problems: Vec<String>,
    notes: Vec<String>,
    facts: Map<String, Value>,
}

impl Outcome {
    /// A result with a description of what must happen.
    pub(crate) fn expecting(expected: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            ..Self::default()
        }
    }

    /// Sets what happened.
    pub(crate) fn observed(&mut self, observed: impl Into<String>) {
        self.observed = observed.into();
    }

    /// Adds a line to the text output.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a value to the JSON output.
    pub(crate) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Fails the step.
    pub(crate) fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Fails the step unless `holds`.
    pub(crate) fn must(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.problem(otherwise());
        }
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

/// One step of the report.
#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    title: &'static str,
    ok: bool,
    expected: String,
    observed: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    details: Map<String, Value>,
    duration_ms: u64,
}

/// The report of a demo.
#[derive(Debug)]
pub(crate) struct Report {
    output: Output,
    started: Instant,
    steps: Vec<Step>,
    /// Why the story ended early.
    aborted: Option<String>,
}

impl Report {
    pub(crate) fn begin(output: Output) -> Self {
        let this = Self {
            output,
            started: Instant::now(),
            steps: Vec::new(),
            aborted: None,
        };
        this.line("Merlon demo: a mesh on this machine, with real processes, certificates, tokens and policies.");
        this
    }

    /// Prints a line of text output.
    pub(crate) fn line(&self, line: &str) {
        if self.output == Output::Text {
            print_line(line);
        }
    }

    /// Adds a step and prints it.
    pub(crate) fn step(
        &mut self,
        name: &'static str,
        title: &'static str,
        outcome: Outcome,
        took: Duration,
    ) {
        let ok = outcome.is_ok();
        self.line("");
        self.line(&format!("{:>2}. {title}", self.steps.len() + 1));
        let word = if ok { "ok    " } else { "FAILED" };
        self.line(&format!(
            "    {word} {} ({} ms)",
            outcome.observed,
            took.as_millis()
        ));
        for note in &outcome.notes {
            self.line(&format!("           {note}"));
        }
        if !ok {
            self.line(&format!("           expected: {}", outcome.expected));
            for problem in &outcome.problems {
                self.line(&format!("           but: {problem}"));
            }
            // For scripts that only read standard error.
            let first = outcome.problems.first().map_or("", String::as_str);
            eprint_line(&format!("error: step `{name}` failed: {first}"));
        }
        self.steps.push(Step {
            name,
            title,
            ok,
            expected: outcome.expected,
            observed: outcome.observed,
            problems: outcome.problems,
            details: outcome.facts,
            duration_ms: millis(took),
        });
    }

    /// Records why the story cannot continue.
    pub(crate) fn abort(&mut self, why: &str) {
        eprint_line(&format!("error: {why}"));
        self.aborted = Some(why.to_owned());
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.aborted.is_none() && self.steps.iter().all(|step| step.ok)
    }

    /// The names of the failed steps.
    pub(crate) fn failed(&self) -> Vec<&'static str> {
        self.steps
            .iter()
            .filter(|step| !step.ok)
            .map(|step| step.name)
            .collect()
    }

    /// Prints a summary, or the whole report as JSON.
    pub(crate) fn finish(&self, about: &Map<String, Value>) {
        let took = self.started.elapsed();
        let failed = self.failed();
        let passed = self.steps.len() - failed.len();
        self.line("");
        self.line(&format!(
            "{passed} of {} steps passed in {:.1} s.{}",
            self.steps.len(),
            took.as_secs_f64(),
            if failed.is_empty() {
                String::new()
            } else {
                format!(" Failed: {}.", failed.join(", "))
            }
        ));
        if self.output == Output::Json {
            let mut all = about.clone();
            all.insert("ok".to_owned(), self.is_ok().into());
            all.insert("duration_ms".to_owned(), millis(took).into());
            if let Some(why) = &self.aborted {
                all.insert("aborted".to_owned(), why.as_str().into());
            }
            all.insert(
                "steps".to_owned(),
                serde_json::to_value(&self.steps).unwrap_or_default(),
            );
            print_json(&all);
        }
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
