//! The control plane's memory over a restart: one SQLite file in the state directory.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::Connection;

/// Why the store did not answer. Nothing that depends on it is then granted.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("the database refused: {0}")]
    Database(#[from] rusqlite::Error),
    /// The runtime is going down.
    #[error("the control plane is shutting down")]
    Gone,
}

/// Join tokens and the issuance ledger. Calls leave the runtime's threads: the disk may take its time.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    connection: Arc<Mutex<Connection>>,
}

impl Store {
    pub(crate) fn open(file: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open(file)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A token that was used must stay used after a power failure.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Does `work` on a thread that may block.
    pub(crate) async fn with<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || {
            // A panic of another caller left no transaction open: rusqlite rolls back when it is dropped.
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(StoreError::Gone),
        }
    }
}

/// Times are milliseconds since 1970. The triggers keep the ledger append-only against mistakes of our own;
/// against others the file's permissions must.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS join_tokens (
    secret_sha256 BLOB PRIMARY KEY,
    identity TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER,
    used_by TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    identity TEXT NOT NULL,
    serial TEXT NOT NULL,
    evidence TEXT NOT NULL,
    node_id TEXT NOT NULL,
    address TEXT NOT NULL,
    not_after INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS ledger_by_identity ON ledger (identity, id);
CREATE TRIGGER IF NOT EXISTS ledger_stays BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS ledger_keeps BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
";
