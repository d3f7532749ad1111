//! Keys in the paths of lifecycle hooks.

use aws_lc_rs::{error::Unspecified, hmac, rand};
use merlon_config::probe::HookKey;

/// How the keys of pods' hooks are made.
#[derive(Debug)]
pub enum HookKeys {
    /// Each key is random.
    Random,
    /// Each key is derived from a seed and the pod's owner, so injecting the same object again gives the same result.
    Seeded(Box<hmac::Key>),
}

/// The seed is too short to be kept secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the seed has {0} bytes, and at least {SEED} are required")]
pub struct ShortSeed(usize);

/// The length of a key, in bytes.
const SEED: usize = 16;

impl HookKeys {
    /// Keys derived from a seed, which must be secret and random.
    ///
    /// # Errors
    /// [`ShortSeed`]: the seed has fewer than 16 bytes.
    pub fn seeded(seed: &[u8]) -> Result<Self, ShortSeed> {
        match seed.len() {
            0..SEED => Err(ShortSeed(seed.len())),
            _ => Ok(Self::Seeded(Box::new(hmac::Key::new(
                hmac::HMAC_SHA256,
                seed,
            )))),
        }
    }

    /// The key for the pod of `owner`: kind, namespace and name.
    ///
    /// # Errors
    /// The system's random number generator fails.
    pub fn of(&self, owner: [&str; 3]) -> Result<HookKey, Unspecified> {
        let mut bytes = [0; 16];
        match self {
            Self::Random => rand::fill(&mut bytes)?,
            Self::Seeded(seed) => {
                let mut signed = hmac::Context::with_key(seed);
                for part in owner {
                    // The length comes first, so different owners never give the same bytes.
                    signed.update(&(part.len() as u64).to_be_bytes());
                    signed.update(part.as_bytes());
                }
                bytes = *signed.sign().as_ref().first_chunk().ok_or(Unspecified)?;
            }
        }
        Ok(HookKey::new(u128::from_be_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: [&str; 3] = ["Deployment", "shop", "web"];

    #[test]
    fn random_keys_differ_each_time() {
        let keys = HookKeys::Random;
        assert_ne!(keys.of(OWNER).unwrap(), keys.of(OWNER).unwrap());
    }

    #[test]
    fn seeded_keys_depend_on_the_owner_and_the_seed_alone() {
        let seeded = |seed: &[u8]| HookKeys::seeded(seed).unwrap();
        let keys = seeded(b"0123456789abcdef");
        let key = keys.of(OWNER).unwrap();
        assert_eq!(key, keys.of(OWNER).unwrap());
        for other in [
            ["StatefulSet", "shop", "web"],
            ["Deployment", "bank", "web"],
            ["Deployment", "shop", "api"],
        ] {
            assert_ne!(key, keys.of(other).unwrap());
        }
        assert_ne!(key, seeded(b"0123456789abcdeg").of(OWNER).unwrap());
        let short = HookKeys::seeded(b"secret").unwrap_err();
        assert_eq!(
            short.to_string(),
            "the seed has 6 bytes, and at least 16 are required"
        );
    }
}
