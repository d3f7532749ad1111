//! Any JSON either gets its sidecar and then stays as it is, or is refused with a printable reason.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use merlon_config::{injection::InjectionSettings, probe::HookKey};
use merlon_inject::{Injection, SkipReason, inject};
use serde_json::Value;

static SETTINGS: LazyLock<InjectionSettings> = LazyLock::new(|| {
    let text = "\
proxyImage: merlon-proxy
interceptImage: merlon-intercept
controlPlane: https://merlon-control-plane.merlon-system.svc:7564
";
    InjectionSettings::parse("injection.yaml", text).expect("valid settings")
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    match inject(&value, "shop", &SETTINGS, &HookKey::new(1)) {
        Ok(Injection::Changed { object, .. }) => {
            let again = inject(&object, "shop", &SETTINGS, &HookKey::new(2));
            assert_eq!(again, Ok(Injection::Unchanged(SkipReason::UpToDate)));
        }
        Ok(Injection::Unchanged(_)) => {}
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
});
