//! The append-only ledger of issued certificates: identity, time and evidence of each of the newest ones. The log has all of
//! them.

use jiff::Timestamp;
use rusqlite::params;
use serde::Serialize;

use crate::{
    cluster::token_review::PodOfToken,
    state::store::{Store, StoreError},
    telemetry::metrics::Metrics,
};

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Issued {
    /// When it was signed.
    pub at: Timestamp,
    /// The identity in the certificate.
    pub identity: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// `join-token`, `service-account` (the token of a pod), `certificate` (renewal), or `self` (the control plane's own).
    pub evidence: String,
    /// The node id of the proxy's process.
    pub node_id: String,
    /// The address of the client.
    pub address: String,
    /// The pod whose token was the evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOfToken>,
    /// When it expires.
    pub not_after: Timestamp,
}

/// The ledger.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    store: Store,
}

impl Ledger {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Records a certificate. If that fails, the log records it (`certificate.issued`): a full disk must not keep proxies from
    /// renewing their certificates.
    pub(crate) async fn append_or_log(&self, entry: Issued, metrics: &Metrics) {
        let (identity, serial) = (entry.identity.clone(), entry.serial.clone());
        if let Err(error) = self.append(entry).await {
            metrics.ledger_failures.inc();
            tracing::error!(identity, serial, error = %error, "ledger.append_failed");
        }
    }

    async fn append(&self, entry: Issued) -> Result<(), StoreError> {
        let rows = self.store.ledger_rows;
        let pod = entry.pod.unwrap_or_default();
        self.store
            .with(move |db| {
                let change = db.transaction()?;
                change.execute(
                    "INSERT INTO ledger (at, identity, serial, evidence, node_id, address, not_after, pod, pod_uid, pod_node)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    params![
                        entry.at.as_millisecond(),
                        entry.identity,
                        entry.serial,
                        entry.evidence,
                        entry.node_id,
                        entry.address,
                        entry.not_after.as_millisecond(),
                        pod.name,
                        pod.uid,
                        pod.node,
                    ],
                )?;
                // The disk of a replica in a cluster is small.
                let oldest = change.last_insert_rowid() - i64::from(rows);
                change.execute("DELETE FROM ledger WHERE id <= ?", [oldest])?;
                change.commit()
            })
            .await
    }

    /// The newest entries, newest first, optionally of one identity.
    pub(crate) async fn newest(
        &self,
        identity: Option<String>,
        count: u32,
    ) -> Result<Vec<Issued>, StoreError> {
        self.store
            .with(move |db| {
                let mut query = db.prepare(
                    "SELECT at, identity, serial, evidence, node_id, address, not_after, pod, pod_uid, pod_node FROM ledger
                     WHERE ?1 IS NULL OR identity = ?1 ORDER BY id DESC LIMIT ?2",
                )?;
                let time = |millis| Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX);
                let rows = query.query_map(params![identity, count], |row| {
                    let pod = PodOfToken {
                        name: row.get(7)?,
                        uid: row.get(8)?,
                        node: row.get(9)?,
                    };
                    Ok(Issued {
                        pod: (pod != PodOfToken::default()).then_some(pod),
                        at: time(row.get(0)?),
                        identity: row.get(1)?,
                        serial: row.get(2)?,
                        evidence: row.get(3)?,
                        node_id: row.get(4)?,
                        address: row.get(5)?,
                        not_after: time(row.get(6)?),
                    })
                })?;
                rows.collect()
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::StoreLimits;

    fn entry(serial: &str) -> Issued {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        Issued {
            at,
            identity: "spiffe://demo.test/ns/shop/sa/web".into(),
            serial: serial.into(),
            evidence: "join-token".into(),
            node_id: "node-1".into(),
            address: "127.0.0.1:1".into(),
            pod: Some(PodOfToken {
                name: "shop/web-1".into(),
                uid: "3a".into(),
                node: "a".into(),
            }),
            not_after: at,
        }
    }

    #[tokio::test]
    async fn the_newest_entries_are_kept_and_the_file_does_not_grow_without_limit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("db");
        let limits = StoreLimits {
            ledger_rows: 10,
            ..StoreLimits::default()
        };
        let ledger = Ledger::new(Store::open(&file, limits).unwrap());
        let size = || std::fs::metadata(&file).unwrap().len();
        let mut sizes = Vec::new();
        for round in 0..3 {
            for number in 0..100 {
                ledger
                    .append(entry(&format!("{}", round * 100 + number)))
                    .await
                    .unwrap();
            }
            let store = &ledger.store;
            let written = store.with(|db| db.pragma_update(None, "wal_checkpoint", "TRUNCATE"));
            written.await.unwrap();
            sizes.push(size());
        }
        let kept = ledger.newest(None, 1_000).await.unwrap();
        let kept: Vec<String> = kept.into_iter().map(|entry| entry.serial).collect();
        let newest: Vec<String> = (290..300).rev().map(|number| number.to_string()).collect();
        assert_eq!(kept, newest);
        assert_eq!(sizes[1], sizes[2], "{sizes:?}");
        // A smaller limit of a later start deletes the rest with the next entry.
        drop(ledger);
        let limits = StoreLimits {
            ledger_rows: 4,
            ..limits
        };
        let ledger = Ledger::new(Store::open(&file, limits).unwrap());
        ledger.append(entry("last")).await.unwrap();
        assert_eq!(ledger.newest(None, 1_000).await.unwrap().len(), 4);
    }

    #[tokio::test]
    async fn an_entry_of_the_ledger_cannot_be_changed_or_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("db"), StoreLimits::default()).unwrap();
        let ledger = Ledger::new(store.clone());
        let entry = entry("0a");
        ledger.append(entry.clone()).await.unwrap();
        for change in ["DELETE FROM ledger", "UPDATE ledger SET serial = '0b'"] {
            let refused = store
                .with(move |db| db.execute(change, []))
                .await
                .unwrap_err();
            assert!(refused.to_string().contains("append-only"), "{refused}");
        }
        assert_eq!(ledger.newest(None, 10).await.unwrap(), [entry]);
        let others = ledger
            .newest(Some("spiffe://demo.test/ns/shop/sa/x".into()), 10)
            .await;
        assert!(others.unwrap().is_empty());
    }
}
