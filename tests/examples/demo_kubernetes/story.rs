//! Steps that are told, counted, and not believed.

use std::{panic::AssertUnwindSafe, process::ExitCode, time::Instant};

use futures_util::FutureExt as _;

#[derive(Default)]
pub(crate) struct Story {
    told: usize,
    failed: Vec<String>,
    begun: Option<Instant>,
}

impl Story {
    /// Does one step. A step that panics has failed, and the story goes on.
    pub(crate) async fn step(
        &mut self,
        what: &str,
        step: impl Future<Output = Result<String, String>>,
    ) {
        self.begun.get_or_insert_with(Instant::now);
        self.told += 1;
        println!("\n{:>2}. {what}", self.told);
        let came = AssertUnwindSafe(step).catch_unwind().await;
        let came = came.unwrap_or_else(|_| Err("it broke off; what broke stands above".to_owned()));
        match came {
            Ok(seen) => println!("    {seen}"),
            Err(why) => {
                println!("    FAILED {why}");
                self.failed.push(format!("{}. {what}", self.told));
            }
        }
    }

    pub(crate) fn end(self) -> ExitCode {
        let seconds = self
            .begun
            .map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        let right = self.told - self.failed.len();
        println!(
            "\n{right} of {} steps did what they must, in {seconds:.0} s",
            self.told
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
