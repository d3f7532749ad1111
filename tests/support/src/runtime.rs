//! The runtime of the harness's own programs.

use std::sync::LazyLock;

use tokio::runtime::Runtime;

static BACKGROUND: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("harness")
        .enable_all()
        .build()
        .expect("a runtime")
});

/// Runs `task` on a runtime that outlives the test, because programs that several tests share must not stop with the
/// first of them.
pub fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    BACKGROUND.spawn(task)
}

/// Makes that runtime the current one, for sockets that must be registered with it.
pub fn enter() -> tokio::runtime::EnterGuard<'static> {
    BACKGROUND.enter()
}
