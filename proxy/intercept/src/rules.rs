//! The rules as text for `nft` and `iptables-restore`. Pure.

use std::{fmt, fmt::Write as _, ops::RangeInclusive};

use aws_lc_rs::digest;
use ipnet::IpNet;

use crate::ports::Ports;

/// The table's name in nftables.
pub(crate) const TABLE: &str = "merlon";
/// The chains' names in iptables.
pub(crate) const OUTPUT: &str = "MERLON_OUTPUT";
pub(crate) const INPUT: &str = "MERLON_INPUT";

/// What is redirected to which port, and what is excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) proxy_uid: u32,
    pub(crate) outbound_port: u16,
    pub(crate) inbound_port: u16,
    /// Reached directly.
    pub(crate) proxy_ports: Ports,
    pub(crate) exclude_inbound: Ports,
    pub(crate) exclude_outbound: Ports,
    pub(crate) exclude_networks: Vec<IpNet>,
}

impl Rules {
    /// Identifies these rules in the kernel.
    pub(crate) fn mark(&self) -> String {
        let text = format!("{self:?}");
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let mut mark = String::from("merlon-");
        for byte in hash.as_ref().iter().take(8) {
            // Writing to a String does not fail.
            let _ = write!(mark, "{byte:02x}");
        }
        mark
    }

    /// Input for `nft -f`, which replaces an earlier table in one transaction.
    pub(crate) fn nftables(&self) -> String {
        let chain = |hook: &str, rules: Vec<String>| {
            let mut text = format!(
                "\tchain {hook} {{\n\t\ttype nat hook {hook} priority -100; policy accept;\n"
            );
            for rule in rules {
                // Writing to a String does not fail.
                let _ = writeln!(text, "\t\t{rule} comment \"{}\"", self.mark());
            }
            text.push_str("\t}\n");
            text
        };
        format!(
            "{}table inet {TABLE} {{\n{}{}}}\n",
            nftables_removal(),
            chain("output", self.nft_output()),
            chain("prerouting", self.nft_prerouting())
        )
    }

    fn nft_output(&self) -> Vec<String> {
        let mut rules = vec![
            format!("meta skuid {} return", self.proxy_uid),
            // The pod's connections to its own address use `lo`, too.
            "oifname \"lo\" return".to_owned(),
        ];
        rules.extend(self.exclude_networks.iter().map(|network| {
            let family = match network {
                IpNet::V4(_) => "ip",
                IpNet::V6(_) => "ip6",
            };
            format!("{family} daddr {} return", network.trunc())
        }));
        rules.extend(nft_ports(&self.exclude_outbound));
        rules.push(format!(
            "meta l4proto tcp redirect to :{}",
            self.outbound_port
        ));
        rules
    }

    fn nft_prerouting(&self) -> Vec<String> {
        let mut rules = Vec::new();
        rules.extend(nft_ports(&self.proxy_ports));
        rules.extend(nft_ports(&self.exclude_inbound));
        rules.push(format!("tcp dport {} return", self.inbound_port));
        rules.push(format!(
            "meta l4proto tcp redirect to :{}",
            self.inbound_port
        ));
        rules
    }

    /// Number of rules in nftables. Each of them contains the mark.
    pub(crate) fn nft_count(&self) -> usize {
        self.nft_output().len() + self.nft_prerouting().len()
    }

    /// Input for `iptables-restore --noflush`, which replaces both chains. It does not include the jumps to them.
    pub(crate) fn iptables(&self, family: Family) -> String {
        let mut text = format!("*nat\n:{OUTPUT} - [0:0]\n:{INPUT} - [0:0]\n");
        for (chain, rule) in self.iptables_rules(family) {
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "-A {chain} -m comment --comment {} {rule}",
                self.mark()
            );
        }
        text.push_str("COMMIT\n");
        text
    }

    fn iptables_rules(&self, family: Family) -> Vec<(&'static str, String)> {
        let mut rules = vec![
            (
                OUTPUT,
                format!("-m owner --uid-owner {} -j RETURN", self.proxy_uid),
            ),
            (OUTPUT, "-o lo -j RETURN".to_owned()),
        ];
        let networks = self.exclude_networks.iter();
        let networks = networks.filter(|network| Family::of(network) == family);
        rules.extend(networks.map(|network| (OUTPUT, format!("-d {} -j RETURN", network.trunc()))));
        let to_port = |range| format!("-p tcp --dport {} -j RETURN", colon(range));
        let excluded = self.exclude_outbound.ranges().iter();
        rules.extend(excluded.map(|range| (OUTPUT, to_port(range))));
        let redirect = |port| format!("-p tcp -j REDIRECT --to-ports {port}");
        rules.push((OUTPUT, redirect(self.outbound_port)));
        let excluded = self.proxy_ports.ranges().iter();
        let excluded = excluded.chain(self.exclude_inbound.ranges());
        rules.extend(excluded.map(|range| (INPUT, to_port(range))));
        let own = self.inbound_port..=self.inbound_port;
        rules.push((INPUT, to_port(&own)));
        rules.push((INPUT, redirect(self.inbound_port)));
        rules
    }

    /// Number of rules in iptables. Each of them contains the mark.
    pub(crate) fn iptables_count(&self, family: Family) -> usize {
        self.iptables_rules(family).len()
    }
}

/// Input for `nft -f`, which also succeeds if the table does not exist.
pub(crate) fn nftables_removal() -> String {
    format!("table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n")
}

/// The address family of a set of iptables rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn of(network: &IpNet) -> Self {
        match network {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

fn nft_ports(ports: &Ports) -> Option<String> {
    let list = ports.to_string().replace(',', ", ");
    (!ports.is_empty()).then(|| format!("tcp dport {{ {list} }} return"))
}

fn colon(range: &RangeInclusive<u16>) -> String {
    format!("{}:{}", range.start(), range.end())
}

/// A summary in one line, for logs.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "outbound connections are redirected to port {}, inbound connections to port {}; excluded: user {}, inbound ports {}",
            self.outbound_port, self.inbound_port, self.proxy_uid, self.proxy_ports
        )?;
        if !self.exclude_inbound.is_empty() {
            write!(f, ",{}", self.exclude_inbound)?;
        }
        if !self.exclude_outbound.is_empty() {
            write!(f, ", outbound ports {}", self.exclude_outbound)?;
        }
        for network in &self.exclude_networks {
            write!(f, ", {network}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            proxy_uid: 7565,
            outbound_port: 7560,
            inbound_port: 7561,
            proxy_ports: "7562,7563".parse().unwrap(),
            exclude_inbound: "22".parse().unwrap(),
            exclude_outbound: "5432,9000-9010".parse().unwrap(),
            exclude_networks: vec![
                "10.7.1.9/16".parse().unwrap(),
                "fd00:7::/32".parse().unwrap(),
            ],
        }
    }

    #[test]
    fn nftables_replaces_its_own_table_in_one_transaction() {
        let rules = rules();
        let text = rules.nftables();
        assert_eq!(text.matches(&rules.mark()).count(), rules.nft_count());
        assert_eq!(
            text.replace(&format!(" comment \"{}\"", rules.mark()), ""),
            "table inet merlon {
}
delete table inet merlon
table inet merlon {
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta skuid 7565 return
\t\toifname \"lo\" return
\t\tip daddr 10.7.0.0/16 return
\t\tip6 daddr fd00:7::/32 return
\t\ttcp dport { 5432, 9000-9010 } return
\t\tmeta l4proto tcp redirect to :7560
\t}
\tchain prerouting {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\ttcp dport { 7562, 7563 } return
\t\ttcp dport { 22 } return
\t\ttcp dport 7561 return
\t\tmeta l4proto tcp redirect to :7561
\t}
}
"
        );
    }

    #[test]
    fn iptables_has_a_set_for_each_family() {
        let rules = rules();
        let v4 = rules.iptables(Family::V4);
        assert_eq!(
            v4.matches(&rules.mark()).count(),
            rules.iptables_count(Family::V4)
        );
        assert_eq!(
            v4.replace(&format!("-m comment --comment {} ", rules.mark()), ""),
            "*nat
:MERLON_OUTPUT - [0:0]
:MERLON_INPUT - [0:0]
-A MERLON_OUTPUT -m owner --uid-owner 7565 -j RETURN
-A MERLON_OUTPUT -o lo -j RETURN
-A MERLON_OUTPUT -d 10.7.0.0/16 -j RETURN
-A MERLON_OUTPUT -p tcp --dport 5432:5432 -j RETURN
-A MERLON_OUTPUT -p tcp --dport 9000:9010 -j RETURN
-A MERLON_OUTPUT -p tcp -j REDIRECT --to-ports 7560
-A MERLON_INPUT -p tcp --dport 7562:7562 -j RETURN
-A MERLON_INPUT -p tcp --dport 7563:7563 -j RETURN
-A MERLON_INPUT -p tcp --dport 22:22 -j RETURN
-A MERLON_INPUT -p tcp --dport 7561:7561 -j RETURN
-A MERLON_INPUT -p tcp -j REDIRECT --to-ports 7561
COMMIT
"
        );
        let v6 = rules.iptables(Family::V6);
        assert!(
            v6.contains("-d fd00:7::/32") && !v6.contains("10.7"),
            "{v6}"
        );
    }

    #[test]
    fn different_rules_have_different_marks() {
        let mut other = rules();
        other.exclude_outbound = Ports::default();
        assert_ne!(rules().mark(), other.mark());
        assert_eq!(rules().mark(), rules().mark());
    }
}
