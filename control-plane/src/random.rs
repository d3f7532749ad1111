//! Random numbers: secrets and jitter, both of the same good source.

/// 32 secret bytes.
///
/// # Errors
/// When the system has none to give.
pub(crate) fn secret() -> Result<[u8; 32], aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes)?;
    Ok(bytes)
}

/// From 0 to 1, for jitter; the middle where the system has none to give.
pub(crate) fn unit() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
