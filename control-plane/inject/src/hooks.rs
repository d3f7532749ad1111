//! Keys of hooks.

use aws_lc_rs::{error::Unspecified, hmac, rand};
use merlon_config::probe::HookKey;

/// Where the keys of pods' hooks come from.
#[derive(Debug)]
pub enum HookKeys {
    /// Each is random.
    Random,
    /// Each is made of a seed and of what the pod belongs to, so that who injects the same once more changes nothing.
    Seeded(Box<hmac::Key>),
}

/// The seed is too short to be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a seed has at least {SEED} bytes, and these are {0}")]
pub struct ShortSeed(usize);

/// As many bytes as a key has.
const SEED: usize = 16;

impl HookKeys {
    /// Keys of a seed, which is to be secret and random.
    ///
    /// # Errors
    /// [`ShortSeed`]: it has less than 16 bytes.
    pub fn seeded(seed: &[u8]) -> Result<Self, ShortSeed> {
        match seed.len() {
            0..SEED => Err(ShortSeed(seed.len())),
            _ => Ok(Self::Seeded(Box::new(hmac::Key::new(
                hmac::HMAC_SHA256,
                seed,
            )))),
        }
    }

    /// The key for the pod of `owner`, which is its kind, namespace and name.
    ///
    /// # Errors
    /// The system has no random numbers to give.
    pub fn of(&self, owner: [&str; 3]) -> Result<HookKey, Unspecified> {
        let mut bytes = [0; 16];
        match self {
            Self::Random => rand::fill(&mut bytes)?,
            Self::Seeded(seed) => {
                let mut signed = hmac::Context::with_key(seed);
                for part in owner {
                    // Its length first, so that no two owners read the same.
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
    fn seeded_keys_are_the_same_for_the_same_and_of_this_seed_alone() {
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
            "a seed has at least 16 bytes, and these are 6"
        );
    }
}
