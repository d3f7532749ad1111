//! Secret random bytes.

/// 32 secret bytes.
///
/// # Errors
/// The system random number generator failed.
pub(crate) fn secret() -> Result<[u8; 32], aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes)?;
    Ok(bytes)
}
