//! Labels, each with its closed set of values.

/// A label of a metric with a closed set of values.
pub trait Label: Copy + PartialEq + 'static {
    /// Its name in the metrics page.
    const NAME: &'static str;
    /// All its values, in order of [`Label::index`].
    const ALL: &'static [Self];

    /// The value in the metrics page.
    fn text(self) -> &'static str;

    /// Its place in [`Label::ALL`].
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
    /// Which way a request goes.
    Direction as "direction" {
        /// Towards the local workload.
        Inbound = "inbound",
        /// Away from it.
        Outbound = "outbound",
        /// In at the edge.
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
        /// Ended without an answer.
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
    /// What a connection was carried by.
    Transport as "transport" {
        /// Mesh TLS with HTTP/2 inside.
        MeshH2 = "mesh-h2",
        /// Mesh TLS with opaque bytes inside.
        MeshTcp = "mesh-tcp",
        /// TLS at the edge.
        Tls = "tls",
        /// None.
        Plain = "plain",
    }
}

label! {
    /// How a TLS handshake ended.
    Handshake as "result" {
        /// Both sides know each other.
        Done = "done",
        /// One side refused the other.
        Refused = "refused",
        /// It took too long.
        Timeout = "timeout",
    }
}

label! {
    /// Which way bytes go, seen from the proxy that counts.
    Way as "way" {
        /// From downstream.
        Received = "received",
        /// To downstream.
        Sent = "sent",
    }
}

label! {
    /// Whether a cache had it.
    CacheResult as "result" {
        /// It had.
        Hit = "hit",
        /// It had not.
        Miss = "miss",
    }
}

label! {
    /// Whether something was got.
    FetchResult as "result" {
        /// It was.
        Ok = "ok",
        /// It was not.
        Failed = "failed",
    }
}

label! {
    /// What became of a new state.
    Update as "result" {
        /// In force.
        Accepted = "accepted",
        /// Refused, the old one stays.
        Refused = "refused",
    }
}
