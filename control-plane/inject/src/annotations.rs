//! Options that a pod sets by annotations.

use ipnet::IpNet;
use merlon_config::nearest;

use crate::{error::InjectError, names::INJECTED, pod::Pod};

const INBOUND_PORTS: &str = "merlon.io/exclude-inbound-ports";
const OUTBOUND_PORTS: &str = "merlon.io/exclude-outbound-ports";
const OUTBOUND_RANGES: &str = "merlon.io/exclude-outbound-ip-ranges";
const MOUNT_SECRETS: &str = "merlon.io/mount-secrets";

/// Traffic that bypasses the proxy, and whether the pod's containers mount its secrets.
#[derive(Debug, Default)]
pub(crate) struct PodOptions {
    pub(crate) inbound_ports: String,
    pub(crate) outbound_ports: String,
    pub(crate) outbound_ranges: Vec<IpNet>,
    pub(crate) secrets: bool,
}

impl PodOptions {
    pub(crate) fn of(pod: &Pod) -> Result<Self, InjectError> {
        let mut options = Self::default();
        for (name, value) in pod.annotations() {
            match name.as_str() {
                INBOUND_PORTS => options.inbound_ports = ports(INBOUND_PORTS, value)?,
                OUTBOUND_PORTS => options.outbound_ports = ports(OUTBOUND_PORTS, value)?,
                OUTBOUND_RANGES => options.outbound_ranges = ranges(value)?,
                MOUNT_SECRETS => options.secrets = boolean(MOUNT_SECRETS, value)?,
                other if other.starts_with("merlon.io/") && other != INJECTED => {
                    return Err(InjectError::Annotation {
                        name: other.chars().take(128).collect(),
                        hint: nearest::hint(
                            other,
                            [
                                INBOUND_PORTS,
                                OUTBOUND_PORTS,
                                OUTBOUND_RANGES,
                                MOUNT_SECRETS,
                            ],
                        ),
                    });
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

fn boolean(name: &'static str, text: &str) -> Result<bool, InjectError> {
    text.parse().map_err(|_| InjectError::AnnotationValue {
        name,
        why: format!("`{text}` is neither `true` nor `false`"),
    })
}

/// The same grammar as in `merlon-intercept`: `5432,9000-9010`.
fn ports(name: &'static str, text: &str) -> Result<String, InjectError> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let checked: Result<Vec<&str>, InjectError> = parts
        .map(|part| {
            range(part).ok_or_else(|| InjectError::AnnotationValue {
                name,
                why: format!(
                    "`{part}` is not a port or a range of ports: write 1 to 65535, as in `5432,9000-9010`"
                ),
            })?;
            Ok(part)
        })
        .collect();
    Ok(checked?.join(","))
}

fn range(part: &str) -> Option<(u16, u16)> {
    let port = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|port| digits && *port != 0)
    };
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some((first, last))
}

fn ranges(text: &str) -> Result<Vec<IpNet>, InjectError> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| {
            part.parse().map_err(|_| InjectError::AnnotationValue {
                name: OUTBOUND_RANGES,
                why: format!("`{part}` is not a network: write it as in `10.0.0.0/8,fd00::/8`"),
            })
        })
        .collect()
}
