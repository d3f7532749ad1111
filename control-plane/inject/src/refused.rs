/// Why a pod gets no sidecar, and so is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no pod.
    #[error("`{0}` is not what a pod has there")]
    Shape(String),
    /// The label says neither yes nor no.
    #[error("the label `merlon.io/inject` is `{0}`: write `enabled` or `disabled`")]
    Label(String),
    /// An annotation that nobody reads.
    #[error("the annotation `{name}` is not known{}", hint.as_ref().map(|hint| format!(": {hint}")).unwrap_or_default())]
    Annotation {
        /// Which.
        name: String,
        /// The nearest known one.
        hint: Option<String>,
    },
    /// An annotation's value.
    #[error("the annotation `{name}`: {why}")]
    AnnotationValue {
        /// Which.
        name: &'static str,
        /// What is wrong, and how it is written.
        why: String,
    },
    /// It has the network of its machine.
    #[error(
        "a pod with `hostNetwork: true` cannot be in the mesh: rules for it would hold for its whole machine; \
         label it `merlon.io/inject: \"disabled\"`, or take `hostNetwork` away"
    )]
    HostNetwork,
    /// It is for Windows.
    #[error("a pod for Windows cannot be in the mesh: label it `merlon.io/inject: \"disabled\"`")]
    Windows,
    /// It has something by a name of ours.
    #[error("the {what} `{name}` bears a name that Merlon gives: call it otherwise")]
    Reserved {
        /// `container` or `volume`.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// It would be taken for the proxy.
    #[error(
        "{who} runs as the user 7565, which is the proxy's: its connections would pass by the proxy; choose another user"
    )]
    User {
        /// `the pod` or a container.
        who: String,
    },
    /// A port of the proxy.
    #[error(
        "the container `{container}` has the port {port}, and 7560 to 7563 are the proxy's: choose another"
    )]
    Port {
        /// Which container.
        container: String,
        /// Which port.
        port: u16,
    },
    /// A probe that asks the proxy.
    #[error(
        "the {occasion} probe of the container `{container}` asks the port {port}, and 7560 to 7563 are the proxy's: \
         ask one of the program's"
    )]
    OwnProbePort {
        /// Which container.
        container: String,
        /// Which probe.
        occasion: String,
        /// Which port.
        port: u16,
    },
    /// A probe that leads nowhere.
    #[error(
        "the {occasion} probe of the container `{container}` asks the port `{port}`, which is neither a number nor the \
         name of one of its ports"
    )]
    ProbePort {
        /// Which container.
        container: String,
        /// Which probe.
        occasion: String,
        /// What is written.
        port: String,
    },
}
