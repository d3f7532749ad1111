//! The wall clock of the process: certificates and tokens expire by it.
//!
//! Everything that reads the time of day reads it here; `.clippy.toml` forbids the direct calls. In a release build it is
//! exactly the system clock. A debug build can move it with [`follow`], so that a test of an expiry does not wait. What
//! measures durations (time-outs, back-off) uses a monotonic clock, which nothing moves.

use std::{
    ops::Range,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use tokio::time::{self, Instant};

#[cfg(debug_assertions)]
pub use self::test_clock::follow;

/// The current time.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the system clock"
)]
pub fn system_time() -> SystemTime {
    let time = SystemTime::now();
    #[cfg(debug_assertions)]
    let time = test_clock::moved(time);
    time
}

/// The current time as a [`Timestamp`]. A time that a timestamp cannot express is [`Timestamp::MAX`], at which everything
/// has expired.
pub fn now() -> Timestamp {
    Timestamp::try_from(system_time()).unwrap_or(Timestamp::MAX)
}

/// The time since 1970; zero before.
pub fn since_epoch() -> Duration {
    let since = system_time().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

/// Returns when the clock shows a time outside of `period`. The clock may jump (the machine was suspended, NTP corrected
/// it), so it is read again after `check` at the latest.
pub async fn outside(period: Range<Timestamp>, check: Duration) {
    loop {
        let now = now();
        if !period.contains(&now) {
            return;
        }
        let left = Duration::try_from(period.end.duration_since(now));
        time::sleep(left.map_or(check, |left| left.min(check))).await;
    }
}

/// A moment whose age both clocks measure. The monotonic clock stands still while the machine is suspended, and the wall
/// clock may be set back: the longer time counts.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    monotonic: Instant,
    wall: Duration,
}

impl Moment {
    /// The current moment.
    pub fn now() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: since_epoch(),
        }
    }

    /// Time since this moment.
    pub fn age(&self) -> Duration {
        let wall = since_epoch().saturating_sub(self.wall);
        self.monotonic.elapsed().max(wall)
    }
}

/// A clock that tests can set. Release builds do not have it.
#[cfg(debug_assertions)]
mod test_clock {
    use std::{
        ffi::OsString,
        fs,
        path::{Path, PathBuf},
        process,
        sync::atomic::{AtomicI64, Ordering::Relaxed},
        thread,
        time::{Duration, SystemTime},
    };

    use crate::report::{Problem, Report};

    /// Seconds that are added to the system clock. It is global because the verification of certificates reads the clock
    /// too, in places to which nothing can be passed.
    static OFFSET: AtomicI64 = AtomicI64::new(0);

    /// How often the file is read.
    const POLL: Duration = Duration::from_millis(100);

    pub(super) fn moved(time: SystemTime) -> SystemTime {
        let offset = OFFSET.load(Relaxed);
        let by = Duration::from_secs(offset.unsigned_abs());
        let moved = if offset < 0 {
            time.checked_sub(by)
        } else {
            time.checked_add(by)
        };
        moved.unwrap_or(time)
    }

    /// Adds the offset in a file, a signed number of seconds, to the clock, now and whenever it changes. Each offset that
    /// is in force is written to `<file>.<process id>`, so that a test can wait for it.
    ///
    /// # Errors
    /// The file cannot be read, or has no such number.
    pub fn follow(file: &Path) -> Result<(), Report> {
        let in_force = read(file).and_then(|offset| put_in_force(file, offset));
        let mut known = in_force.map_err(|error| {
            let problem = Problem::error(file.display().to_string(), error);
            Report::from_iter([problem.hint("write a number of seconds, as `-60`")])
        })?;
        let file = file.to_owned();
        thread::spawn(move || {
            loop {
                thread::sleep(POLL);
                // A file that is not valid any more changes nothing.
                if let Ok(offset) = read(&file)
                    && offset != known
                    && put_in_force(&file, offset).is_ok()
                {
                    known = offset;
                }
            }
        });
        Ok(())
    }

    fn read(file: &Path) -> Result<i64, String> {
        let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
        text.trim().parse().map_err(|_| {
            let text = text.trim();
            format!("`{text}` is not a signed number of seconds")
        })
    }

    fn put_in_force(file: &Path, offset: i64) -> Result<i64, String> {
        OFFSET.store(offset, Relaxed);
        let mut name = OsString::from(file);
        name.push(format!(".{}", process::id()));
        let written = fs::write(PathBuf::from(name), offset.to_string());
        written.map_err(|error| error.to_string())?;
        Ok(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_age_of_a_moment_is_the_longer_of_what_the_two_clocks_measured() {
        let minute = Duration::from_secs(60);
        let mut moment = Moment::now();
        time::advance(minute).await;
        assert!(moment.age() >= minute, "the monotonic clock");

        moment = Moment::now();
        moment.wall -= minute;
        assert!(moment.age() >= minute, "the wall clock");

        moment = Moment::now();
        moment.wall += minute;
        time::advance(minute).await;
        assert!(moment.age() >= minute, "the wall clock was set back");
    }
}
