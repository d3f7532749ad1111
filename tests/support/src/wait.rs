//! Waiting for conditions, always with a time limit and always with the name of the condition.

use std::{
    fmt,
    panic::Location,
    time::{Duration, Instant},
};

/// How long a test waits for anything before it fails. Long enough for a machine under heavy load.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Waits for `future`, at most [`TIMEOUT`]. `what` completes "timed out, waiting for …".
///
/// # Panics
/// If `future` is not ready by then. The message contains `what` and the caller's position.
#[track_caller]
pub fn limit<T>(
    what: impl fmt::Display,
    future: impl Future<Output = T>,
) -> impl Future<Output = T> {
    limit_to(TIMEOUT, what, future)
}

/// [`limit`] with another time limit.
///
/// # Panics
/// If `future` is not ready within `timeout`.
#[track_caller]
pub fn limit_to<T>(
    timeout: Duration,
    what: impl fmt::Display,
    future: impl Future<Output = T>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        match tokio::time::timeout(timeout, future).await {
            Ok(value) => value,
            Err(_) => panic!("{caller}: timed out after {timeout:?}, waiting for {what}"),
        }
    }
}

/// Waits until `condition` returns a value.
///
/// # Panics
/// If that does not happen within [`TIMEOUT`].
#[track_caller]
pub fn until_some<T>(
    what: impl fmt::Display,
    condition: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    until_some_within(TIMEOUT, what, condition)
}

/// [`until_some`] with another time limit, for conditions that take longer.
///
/// # Panics
/// If that does not happen within `timeout`, or if one call of `condition` hangs beyond it.
#[track_caller]
pub fn until_some_within<T>(
    timeout: Duration,
    what: impl fmt::Display,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let mut pause = Pause::new(timeout);
    async move {
        loop {
            if let Some(value) = pause.limit(&what, condition()).await {
                return value;
            }
            pause.before_next(&what, &"").await;
        }
    }
}

/// Waits until `condition` is true.
///
/// # Panics
/// If that does not happen within [`TIMEOUT`].
#[track_caller]
pub fn until(
    what: impl fmt::Display,
    mut condition: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    until_some(what, async move || condition().await.then_some(()))
}

/// Waits until `read` returns a value that `wanted` accepts, and returns it. Tests use it through [`eventually!`](crate::eventually).
///
/// # Panics
/// If that does not happen within [`TIMEOUT`]; the message contains the last value.
#[track_caller]
pub fn until_value<T: fmt::Debug>(
    what: impl fmt::Display,
    read: impl AsyncFnMut() -> T,
    wanted: impl FnMut(&T) -> bool,
) -> impl Future<Output = T> {
    until_value_within(TIMEOUT, what, read, wanted)
}

/// [`until_value`] with another time limit.
///
/// # Panics
/// If that does not happen within `timeout`.
#[track_caller]
pub fn until_value_within<T: fmt::Debug>(
    timeout: Duration,
    what: impl fmt::Display,
    mut read: impl AsyncFnMut() -> T,
    mut wanted: impl FnMut(&T) -> bool,
) -> impl Future<Output = T> {
    let mut pause = Pause::new(timeout);
    async move {
        loop {
            let value = pause.limit(&what, read()).await;
            if wanted(&value) {
                return value;
            }
            pause
                .before_next(&what, &format_args!("; the last value is {value:#?}"))
                .await;
        }
    }
}

/// Waits until an expression has a value, at most [`wait::TIMEOUT`](crate::wait::TIMEOUT), and returns the value. A failure
/// prints the last value. The expression may await.
///
/// ```ignore
/// eventually!(mesh.status_of("web").await["state"], == "acknowledged");
/// let version = eventually!(follower.version(), matches Some(version) if *version > first);
/// ```
#[macro_export]
macro_rules! eventually {
    ($value:expr, matches $pattern:pat $(if $guard:expr)? $(,)?) => {
        $crate::wait::until_value(
            concat!("`", stringify!($value), "` matches `", stringify!($pattern $(if $guard)?), "`"),
            async || $value,
            |value| matches!(value, $pattern $(if $guard)?),
        )
        .await
    };
    ($value:expr, == $wanted:expr $(,)?) => {
        $crate::wait::until_value(
            concat!("`", stringify!($value), "` is `", stringify!($wanted), "`"),
            async || $value,
            |value| *value == $wanted,
        )
        .await
    };
}

/// [`until_value`] for tests without a runtime. Blocks the thread.
///
/// # Panics
/// If `read` returns no wanted value within [`TIMEOUT`]; the message contains the last value.
#[track_caller]
pub fn block_until_value<T: fmt::Debug>(
    what: impl fmt::Display,
    mut read: impl FnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let pause = Pause::new(TIMEOUT);
    loop {
        let value = read();
        if wanted(&value) {
            return value;
        }
        pause.check(&what, &format_args!("; the last value is {value:#?}"));
        std::thread::sleep(LONGEST_PAUSE);
    }
}

/// The pauses between two looks. The first ones are short, because most conditions are true soon. After a look that starts
/// a process, such as `kubectl`, a pause is longer: otherwise tests that wait would use up the machine.
struct Pause {
    caller: &'static Location<'static>,
    start: Instant,
    timeout: Duration,
    next: Duration,
    last_look: Duration,
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE_AFTER_A_LONG_LOOK: Duration = Duration::from_millis(500);

impl Pause {
    #[track_caller]
    fn new(timeout: Duration) -> Self {
        Self {
            caller: Location::caller(),
            start: Instant::now(),
            timeout,
            next: SHORTEST_PAUSE,
            last_look: Duration::ZERO,
        }
    }

    /// One look, which must not hang either.
    async fn limit<T>(&mut self, what: &impl fmt::Display, look: impl Future<Output = T>) -> T {
        let start = Instant::now();
        match tokio::time::timeout(self.timeout, look).await {
            Ok(value) => {
                self.last_look = start.elapsed();
                value
            }
            Err(_) => panic!(
                "{}: one look hung for {:?}, waiting until {what}",
                self.caller, self.timeout
            ),
        }
    }

    fn check(&self, what: &impl fmt::Display, last: &impl fmt::Display) {
        assert!(
            self.start.elapsed() < self.timeout,
            "{}: timed out after {:?}, waiting until {what}{last}",
            self.caller,
            self.timeout
        );
    }

    async fn before_next(&mut self, what: &impl fmt::Display, last: &impl fmt::Display) {
        self.check(what, last);
        let after_a_long_look = (self.last_look * 2).min(LONGEST_PAUSE_AFTER_A_LONG_LOOK);
        tokio::time::sleep(self.next.max(after_a_long_look)).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    /// The message of the panic of `future`.
    async fn message(future: impl Future<Output = ()> + 'static) -> String {
        let local = tokio::task::LocalSet::new();
        let task = local.spawn_local(future);
        let error = local.run_until(task).await.expect_err("a panic");
        let payload = error.into_panic();
        payload.downcast_ref::<String>().expect("text").clone()
    }

    #[tokio::test]
    async fn a_wait_that_fails_names_what_it_waited_for_and_where() {
        let never = std::future::pending::<()>();
        let text = message(limit_to(SHORT, "the answer", never)).await;
        assert!(text.contains("waiting for the answer"), "{text}");
        assert!(text.contains(file!()), "{text}");

        let text = message(until_some_within(SHORT, "it is there", async || None)).await;
        assert!(
            text.contains("timed out") && text.contains("waiting until it is there"),
            "{text}"
        );
        assert!(text.contains(file!()), "{text}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_fails_the_wait() {
        let text = message(until_some_within(SHORT, "it answers", async || {
            std::future::pending::<Option<()>>().await
        }))
        .await;
        assert!(
            text.contains("one look hung") && text.contains("it answers"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn eventually_looks_again_and_returns_the_value() {
        let looks = AtomicU32::new(0);
        let look = || Some(looks.fetch_add(1, Ordering::Relaxed));
        assert_eq!(
            eventually!(look(), matches Some(count) if *count > 2),
            Some(3)
        );
        assert_eq!(eventually!(looks.load(Ordering::Relaxed), == 4), 4);
    }

    #[tokio::test]
    async fn eventually_prints_the_last_value() {
        let wait = until_value_within(SHORT, "it is seven", async || 6, |value| *value == 7);
        let text = message(async {
            wait.await;
        })
        .await;
        assert!(
            text.ends_with("waiting until it is seven; the last value is 6"),
            "{text}"
        );
    }
}
