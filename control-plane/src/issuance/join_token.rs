//! Join tokens: for one identity, for one use, short-lived.

use std::time::Duration;

use jiff::Timestamp;
use merlon_api::JoinToken;
use merlon_config::name::SpiffeId;
use rusqlite::{OptionalExtension, params};

use crate::state::store::{Store, StoreError};

/// The default lifetime of a token.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(600);
/// The maximum lifetime of a token.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(600);
/// How long used and expired tokens are kept, so that a second use can be distinguished from a guess.
const RETENTION: Duration = Duration::from_secs(24 * 3_600);

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefusal {
    /// Never created here, or deleted.
    #[error("the join token is not known")]
    Unknown,
    /// Its lifetime is over.
    #[error("the join token expired at {0}")]
    Expired(Timestamp),
    /// It was used before: one of the two clients should not have it.
    #[error("the join token was used before, at {at}")]
    Used {
        /// The time of the first use.
        at: Timestamp,
        /// The node that used it.
        by: String,
        /// The identity of the token.
        identity: String,
    },
}

/// The created tokens. Only hashes are stored.
#[derive(Debug, Clone)]
pub(crate) struct JoinTokens {
    store: Store,
}

impl JoinTokens {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Stores a token for one identity.
    pub(crate) async fn add(
        &self,
        token: &JoinToken,
        identity: &SpiffeId,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Timestamp, StoreError> {
        let (hash, identity) = (token.secret_sha256(), identity.to_string());
        let expires = later(now, ttl);
        let expired_before = now.as_millisecond() - millis(RETENTION);
        self.store
            .with(move |db| {
                db.execute("DELETE FROM join_tokens WHERE expires_at < ?", [expired_before])?;
                db.execute(
                    "INSERT INTO join_tokens (secret_sha256, identity, created_at, expires_at) VALUES (?, ?, ?, ?)",
                    params![hash, identity, now.as_millisecond(), expires.as_millisecond()],
                )
            })
            .await?;
        Ok(expires)
    }

    /// The identity of the token, without consuming it: the other checks come first, so that a mistake does not cost the
    /// token.
    pub(crate) async fn lookup(
        &self,
        token: &JoinToken,
        now: Timestamp,
    ) -> Result<Result<String, TokenRefusal>, StoreError> {
        let hash = token.secret_sha256();
        let row = self
            .store
            .with(move |db| {
                db.query_row(
                    "SELECT identity, expires_at, used_at, used_by FROM join_tokens WHERE secret_sha256 = ?",
                    [hash],
                    |row| {
                        let used: Option<(i64, String)> = row
                            .get::<_, Option<i64>>(2)?
                            .map(|at| Ok::<_, rusqlite::Error>((at, row.get(3)?)))
                            .transpose()?;
                        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, used))
                    },
                )
                .optional()
            })
            .await?;
        Ok(match row {
            None => Err(TokenRefusal::Unknown),
            // Used takes precedence over expired: an operator must investigate it.
            Some((identity, _, Some((at, by)))) => Err(TokenRefusal::Used {
                at: timestamp(at),
                by,
                identity,
            }),
            Some((_, expires, None)) if expires <= now.as_millisecond() => {
                Err(TokenRefusal::Expired(timestamp(expires)))
            }
            Some((identity, _, None)) => Ok(identity),
        })
    }

    /// Consumes the token in one write, so that one of two concurrent uses wins. `false` if another did.
    pub(crate) async fn consume(
        &self,
        token: &JoinToken,
        by: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (hash, by) = (token.secret_sha256(), by.to_owned());
        let now = now.as_millisecond();
        let rows = self
            .store
            .with(move |db| {
                db.execute(
                    "UPDATE join_tokens SET used_at = ?2, used_by = ?3
                     WHERE secret_sha256 = ?1 AND used_at IS NULL AND expires_at > ?2",
                    params![hash, now, by],
                )
            })
            .await?;
        Ok(rows == 1)
    }

    /// Restores a token whose certificate could not be signed: the client made no mistake.
    pub(crate) async fn restore(&self, token: &JoinToken) -> Result<(), StoreError> {
        let hash = token.secret_sha256();
        let back = "UPDATE join_tokens SET used_at = NULL, used_by = NULL WHERE secret_sha256 = ?";
        self.store.with(move |db| db.execute(back, [hash])).await?;
        Ok(())
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn later(now: Timestamp, span: Duration) -> Timestamp {
    timestamp(now.as_millisecond().saturating_add(millis(span)))
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::StoreLimits;

    struct Fixture {
        folder: tempfile::TempDir,
        tokens: JoinTokens,
        token: JoinToken,
        now: Timestamp,
    }

    async fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::new(
            Store::open(&folder.path().join("db"), StoreLimits::default()).unwrap(),
        );
        let token = JoinToken::new("demo.test".parse().unwrap(), [7; 32], b"root");
        let identity = "spiffe://demo.test/ns/shop/sa/web".parse().unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        tokens
            .add(&token, &identity, now, DEFAULT_TTL)
            .await
            .unwrap();
        Fixture {
            folder,
            tokens,
            token,
            now,
        }
    }

    #[tokio::test]
    async fn a_token_expires_exactly_at_its_end() {
        let Fixture {
            folder: _folder,
            tokens,
            token,
            now,
        } = fixture().await;
        let end = later(now, DEFAULT_TTL);
        let before = later(now, DEFAULT_TTL - Duration::from_millis(1));
        assert!(tokens.lookup(&token, before).await.unwrap().is_ok());
        let refused = tokens.lookup(&token, end).await.unwrap();
        assert_eq!(refused, Err(TokenRefusal::Expired(end)));
        assert!(!tokens.consume(&token, "node", end).await.unwrap());
    }

    #[tokio::test]
    async fn a_token_is_consumed_once_and_its_node_is_recorded() {
        let Fixture {
            folder: _folder,
            tokens,
            token,
            now,
        } = fixture().await;
        assert!(tokens.consume(&token, "node-1", now).await.unwrap());
        assert!(!tokens.consume(&token, "node-2", now).await.unwrap());
        let later = later(now, 2 * DEFAULT_TTL);
        let used = tokens.lookup(&token, later).await.unwrap();
        let identity = "spiffe://demo.test/ns/shop/sa/web".to_owned();
        let by = "node-1".to_owned();
        assert_eq!(
            used,
            Err(TokenRefusal::Used {
                at: now,
                by,
                identity
            }),
            "also after it has expired"
        );
    }

    #[tokio::test]
    async fn a_restored_token_is_valid_again() {
        let Fixture {
            folder: _folder,
            tokens,
            token,
            now,
        } = fixture().await;
        assert!(tokens.consume(&token, "node-1", now).await.unwrap());
        tokens.restore(&token).await.unwrap();
        assert!(tokens.consume(&token, "node-1", now).await.unwrap());
    }

    #[tokio::test]
    async fn the_database_does_not_hold_the_secret() {
        let Fixture { folder, token, .. } = fixture().await;
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(32).any(|window| window == [7; 32]));
            let text = token.reveal();
            assert!(
                !bytes
                    .windows(text.len())
                    .any(|window| window == text.as_bytes())
            );
        }
    }

    #[tokio::test]
    async fn tokens_are_deleted_a_day_after_they_expired() {
        let Fixture {
            folder: _folder,
            tokens,
            token,
            now,
        } = fixture().await;
        let next = JoinToken::new("demo.test".parse().unwrap(), [8; 32], b"root");
        let identity = "spiffe://demo.test/ns/shop/sa/web".parse().unwrap();
        let then = later(now, DEFAULT_TTL + RETENTION + Duration::from_millis(1));
        tokens
            .add(&next, &identity, then, DEFAULT_TTL)
            .await
            .unwrap();
        assert_eq!(
            tokens.lookup(&token, then).await.unwrap(),
            Err(TokenRefusal::Unknown)
        );
    }
}
