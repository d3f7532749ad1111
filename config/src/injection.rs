//! The injector's settings for every injected pod, in a small YAML file.

use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use crate::{
    bootstrap::{AccessLogMode, Validate, load, parse},
    name::Namespace,
    report::Report,
    unit::HumanDuration,
};

/// The settings of the injector.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InjectionSettings {
    /// The image of `merlon-proxy`. Required.
    #[serde(default)]
    pub proxy_image: String,
    /// The image of `merlon-intercept`. Required.
    #[serde(default)]
    pub intercept_image: String,
    /// `imagePullPolicy` of the containers: `Always`, `IfNotPresent` or `Never`. Default: Kubernetes decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// The control plane's URL, for example `https://merlon-control-plane.merlon-system.svc:7564`. Required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<Url>,
    /// The namespace of the control plane's identity. Default: `merlon-system`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_namespace: Option<Namespace>,
    /// `resources` of the proxy's container.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub proxy_resources: Map<String, Value>,
    /// `resources` of the container that installs the interception rules.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub intercept_resources: Map<String, Value>,
    /// Which requests are logged. Default: the proxy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLogMode>,
    /// How long open requests may take to finish at shutdown. Default: the proxy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<HumanDuration>,
    /// The proxy's log filter, in the syntax of `RUST_LOG`, as `info,merlon_proxy=debug`. Default: the proxy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_filter: Option<String>,
    /// Destination addresses that are not redirected to the proxy in any pod, for example `10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_outbound_ip_ranges: Vec<IpNet>,
}

/// When a node pulls an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// If the node does not have it.
    IfNotPresent,
    /// Never.
    Never,
}

impl InjectionSettings {
    /// Reads a file of settings.
    ///
    /// # Errors
    /// All problems in the file.
    pub fn load(file: &Path) -> Result<Self, Report> {
        load(file)
    }

    /// Reads settings from memory.
    ///
    /// # Errors
    /// All problems in the file.
    pub fn parse(file: &str, text: &str) -> Result<Self, Report> {
        parse(file, text)
    }
}

impl Validate for InjectionSettings {
    fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let mut found = Vec::new();
        let mut when = |wrong: bool, field, message| {
            if wrong {
                found.push((field, message));
            }
        };
        when(
            self.proxy_image.is_empty(),
            "proxyImage",
            "`proxyImage` is missing: the image of `merlon-proxy`",
        );
        when(
            self.intercept_image.is_empty(),
            "interceptImage",
            "`interceptImage` is missing: the image of `merlon-intercept`",
        );
        when(
            self.control_plane.is_none(),
            "controlPlane",
            "`controlPlane` is missing: its URL, for example `https://merlon-control-plane.merlon-system.svc:7564`",
        );
        when(
            self.control_plane
                .as_ref()
                .is_some_and(|url| url.scheme() != "https"),
            "controlPlane",
            "the control plane's URL must begin with `https://`",
        );
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let text = "\
proxyImage: registry.example.org/merlon-proxy:0.1.0
interceptImage: registry.example.org/merlon-intercept:0.1.0
imagePullPolicy: IfNotPresent
controlPlane: https://merlon-control-plane.merlon-system.svc:7564
proxyResources: { requests: { cpu: 50m, memory: 32Mi } }
drainTimeout: 30s
excludeOutboundIpRanges: [169.254.169.254/32]
";
        let settings = InjectionSettings::parse("injection.yaml", text).unwrap();
        assert_eq!(settings.proxy_resources["requests"]["cpu"], "50m");
        assert_eq!(settings.image_pull_policy, Some(PullPolicy::IfNotPresent));
    }

    #[test]
    fn all_missing_and_invalid_settings_are_reported() {
        let text = "proxyImages: a\ncontrolPlane: http://merlon:7564\n";
        insta::assert_snapshot!(InjectionSettings::parse("injection.yaml", text).unwrap_err());
        let text = "controlPlane: http://merlon:7564\n";
        insta::assert_snapshot!(InjectionSettings::parse("injection.yaml", text).unwrap_err());
    }
}
