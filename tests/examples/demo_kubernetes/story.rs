//! The steps of the demo: printed, checked and counted.

use std::{panic::AssertUnwindSafe, process::ExitCode, time::Instant};

use futures_util::FutureExt as _;

#[derive(Default)]
pub(crate) struct Story {
    steps: usize,
    failed: Vec<String>,
    start: Option<Instant>,
}

impl Story {
    /// Runs one step. A step that panics has failed; the demo continues.
    pub(crate) async fn step(
        &mut self,
        what: &str,
        step: impl Future<Output = Result<String, String>>,
    ) {
        self.start.get_or_insert_with(Instant::now);
        self.steps += 1;
        println!("\n{:>2}. {what}", self.steps);
        let result = AssertUnwindSafe(step).catch_unwind().await;
        let result = result.unwrap_or_else(|_| Err("panicked; see the message above".to_owned()));
        match result {
            Ok(observed) => println!("    {observed}"),
            Err(why) => {
                println!("    FAILED: {why}");
                self.failed.push(format!("{}. {what}", self.steps));
            }
        }
    }

    pub(crate) fn end(self) -> ExitCode {
        let seconds = self
            .start
            .map_or(0.0, |start| start.elapsed().as_secs_f64());
        let succeeded = self.steps - self.failed.len();
        println!(
            "\n{succeeded} of {} steps succeeded in {seconds:.0} s",
            self.steps
        );
        for step in &self.failed {
            println!("  failed: {step}");
        }
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
