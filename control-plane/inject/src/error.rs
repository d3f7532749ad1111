/// Why a pod cannot get a sidecar and is not created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// It is not a pod.
    #[error("`{0}` is missing or has the wrong type for a pod")]
    Shape(String),
    /// The label's value is neither `enabled` nor `disabled`.
    #[error("the label `merlon.io/inject` is `{0}`: write `enabled` or `disabled`")]
    Label(String),
    /// An unknown annotation.
    #[error("unknown annotation `{name}`{}", hint.as_ref().map(|hint| format!(": {hint}")).unwrap_or_default())]
    Annotation {
        /// The annotation.
        name: String,
        /// The most similar known annotations.
        hint: Option<String>,
    },
    /// An annotation with an invalid value.
    #[error("the annotation `{name}`: {why}")]
    AnnotationValue {
        /// The annotation.
        name: &'static str,
        /// What is wrong, and the right syntax.
        why: String,
    },
    /// It uses the network of its node.
    #[error(
        "a pod with `hostNetwork: true` cannot be in the mesh: its interception rules would apply to the whole node; \
         label it `merlon.io/inject: \"disabled\"`, or remove `hostNetwork`"
    )]
    HostNetwork,
    /// It runs on Windows.
    #[error("a Windows pod cannot be in the mesh: label it `merlon.io/inject: \"disabled\"`")]
    Windows,
    /// It uses a reserved name.
    #[error("the {what} name `{name}` is reserved for Merlon: choose another name")]
    Reserved {
        /// `container` or `volume`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// It runs as the proxy's user.
    #[error(
        "{who} runs as user 7565, which is reserved for the proxy: its connections would bypass the proxy; choose another user"
    )]
    User {
        /// `the pod` or a container of it.
        who: String,
    },
    /// A container uses a port of the proxy.
    #[error(
        "the container `{container}` uses port {port}, and ports 7560 to 7563 are reserved for the proxy: choose another port"
    )]
    Port {
        /// The container.
        container: String,
        /// The port.
        port: u16,
    },
    /// A probe targets a port of the proxy.
    #[error(
        "the {occasion} probe of the container `{container}` targets port {port}, and ports 7560 to 7563 are reserved for the \
         proxy: choose a port of the program"
    )]
    OwnProbePort {
        /// The container.
        container: String,
        /// The probe.
        occasion: String,
        /// The port.
        port: u16,
    },
    /// A probe targets a port that does not exist.
    #[error(
        "the {occasion} probe of the container `{container}` targets port `{port}`, which is neither a port number nor the \
         name of one of the container's ports"
    )]
    ProbePort {
        /// The container.
        container: String,
        /// The probe.
        occasion: String,
        /// The port as written.
        port: String,
    },
}
