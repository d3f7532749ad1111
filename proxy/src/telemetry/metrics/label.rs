//! Metric labels with a closed set of values.

/// A label of a metric with a closed set of values.
pub trait Label: Copy + PartialEq + 'static {
    /// The name in the metrics page.
    const NAME: &'static str;
    /// All values, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The value in the metrics page.
    fn text(self) -> &'static str;

    /// The index in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])* $type:ident as $name:literal { $($(#[$each:meta])* $value:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[$each])* $value,)+
        }

        impl Label for $type {
            const NAME: &'static str = $name;
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn text(self) -> &'static str {
                match self { $(Self::$value => $text),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// The direction of a request.
    Direction as "direction" {
        /// To the local workload.
        Inbound = "inbound",
        /// From the local workload.
        Outbound = "outbound",
        /// Into the mesh, through a gateway.
        Gateway = "gateway",
    }
}

label! {
    /// The class of an HTTP status.
    StatusClass as "status" {
        /// 1xx: upgrades.
        Informational = "1xx",
        /// 2xx.
        Success = "2xx",
        /// 3xx.
        Redirection = "3xx",
        /// 4xx.
        ClientError = "4xx",
        /// 5xx.
        ServerError = "5xx",
        /// Ended without a response.
        None = "none",
    }
}

impl StatusClass {
    /// The class of a status.
    pub fn of(status: u16) -> Self {
        match status / 100 {
            1 => Self::Informational,
            2 => Self::Success,
            3 => Self::Redirection,
            4 => Self::ClientError,
            5 => Self::ServerError,
            _ => Self::None,
        }
    }
}

label! {
    /// The transport of a connection.
    Transport as "transport" {
        /// Mesh TLS with HTTP/2 inside.
        MeshH2 = "mesh-h2",
        /// Mesh TLS with opaque bytes inside.
        MeshTcp = "mesh-tcp",
        /// TLS at the edge.
        Tls = "tls",
        /// No TLS.
        Plain = "plain",
    }
}

label! {
    /// The result of a TLS handshake.
    Handshake as "result" {
        /// It succeeded.
        Done = "done",
        /// One side rejected the other.
        Refused = "refused",
        /// It timed out.
        Timeout = "timeout",
    }
}

label! {
    /// The direction of bytes, as this proxy sees it.
    Way as "way" {
        /// From downstream.
        Received = "received",
        /// To downstream.
        Sent = "sent",
    }
}

label! {
    /// The result of a cache lookup.
    CacheResult as "result" {
        /// Found.
        Hit = "hit",
        /// Not found.
        Miss = "miss",
    }
}

label! {
    /// The result of an attempt.
    FetchResult as "result" {
        /// It succeeded.
        Ok = "ok",
        /// It failed.
        Failed = "failed",
    }
}

label! {
    /// The result of a state update.
    Update as "result" {
        /// It is in force.
        Accepted = "accepted",
        /// It was rejected; the previous state stays in force.
        Refused = "refused",
    }
}
