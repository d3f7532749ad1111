//! What is kept across a restart: one SQLite file in the state directory.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::Connection;

use crate::limits::StoreLimits;

/// Why the store failed. A request that depends on it is rejected.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite returned an error.
    #[error("database error: {0}")]
    Database(#[from] rusqlite::Error),
    /// The runtime is shutting down.
    #[error("the control plane is shutting down")]
    Gone,
}

/// Join tokens and the issuance ledger. Calls run on blocking threads, because the disk can be slow.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    connection: Arc<Mutex<Connection>>,
    /// How many rows the ledger keeps.
    pub(crate) ledger_rows: u32,
}

impl Store {
    pub(crate) fn open(file: &Path, limits: StoreLimits) -> Result<Self, StoreError> {
        let connection = Connection::open(file)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A used token must stay used after a power failure.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.busy_timeout(limits.busy)?;
        let rows = limits.ledger_rows.max(1);
        connection.execute_batch(&SCHEMA.replace("LEDGER_ROWS", &rows.to_string()))?;
        add_missing_columns(&connection)?;
        Ok(Self {
            ledger_rows: rows,
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Runs `work` on a blocking thread.
    pub(crate) async fn with<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || {
            // A panic in another call leaves no open transaction: rusqlite rolls back on drop.
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(StoreError::Gone),
        }
    }
}

/// Adds the columns that the file of an older version does not have. An older version ignores them.
fn add_missing_columns(connection: &Connection) -> rusqlite::Result<()> {
    for column in ["pod", "pod_uid", "pod_node"] {
        if !connection.column_exists(None, "ledger", column)? {
            let add = format!("ALTER TABLE ledger ADD COLUMN {column} TEXT NOT NULL DEFAULT ''");
            connection.execute(&add, [])?;
        }
    }
    Ok(())
}

/// Times are milliseconds since 1970. The triggers protect the append-only ledger, of which only the oldest rows beyond the limit
/// can be deleted, against bugs; the permissions of the file protect it against other users.
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
DROP TRIGGER IF EXISTS ledger_keeps;
CREATE TRIGGER ledger_keeps BEFORE DELETE ON ledger
WHEN OLD.id > (SELECT max(id) FROM ledger) - LEDGER_ROWS
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
";
