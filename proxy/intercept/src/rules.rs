//! The rules, as text for `nft` and for `iptables-restore`. Pure.

use std::{fmt, fmt::Write as _, ops::RangeInclusive};

use aws_lc_rs::digest;
use ipnet::IpNet;

use crate::ports::Ports;

/// The table's name in nftables.
pub(crate) const TABLE: &str = "merlon";
/// The chains' names in iptables.
pub(crate) const OUTPUT: &str = "MERLON_OUTPUT";
pub(crate) const INPUT: &str = "MERLON_INPUT";

/// What is led where, and what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) proxy_uid: u32,
    pub(crate) outbound_port: u16,
    pub(crate) inbound_port: u16,
    /// Reached as they are.
    pub(crate) proxy_ports: Ports,
    pub(crate) exclude_inbound: Ports,
    pub(crate) exclude_outbound: Ports,
    pub(crate) exclude_networks: Vec<IpNet>,
}

impl Rules {
    /// Tells these rules from others: it stands with them in the kernel.
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

    /// For `nft -f`: in one transaction, and in place of an earlier table.
    pub(crate) fn nftables(&self) -> String {
        let mut text = nftables_removal();
        let mut line = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        line(&format!("table inet {TABLE} {{"));
        line(&format!("\tcomment \"{}\"", self.mark()));
        line("\tchain output {");
        line("\t\ttype nat hook output priority -100; policy accept;");
        line(&format!("\t\tmeta skuid {} return", self.proxy_uid));
        // What a pod says to itself leaves it no more than what it says to 127.0.0.1.
        line("\t\toifname \"lo\" return");
        for network in &self.exclude_networks {
            let family = match network {
                IpNet::V4(_) => "ip",
                IpNet::V6(_) => "ip6",
            };
            line(&format!("\t\t{family} daddr {} return", network.trunc()));
        }
        for_ports(&self.exclude_outbound, &mut line);
        line(&format!(
            "\t\tmeta l4proto tcp redirect to :{}",
            self.outbound_port
        ));
        line("\t}");
        line("\tchain prerouting {");
        line("\t\ttype nat hook prerouting priority -100; policy accept;");
        for_ports(&self.proxy_ports, &mut line);
        for_ports(&self.exclude_inbound, &mut line);
        line(&format!("\t\ttcp dport {} return", self.inbound_port));
        line(&format!(
            "\t\tmeta l4proto tcp redirect to :{}",
            self.inbound_port
        ));
        line("\t}");
        line("}");
        text
    }

    /// For `iptables-restore --noflush`: both chains whole; who is led into them is another's matter.
    pub(crate) fn iptables(&self, family: Family) -> String {
        let mut text = String::from("*nat\n");
        let mut line = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        line(&format!(":{OUTPUT} - [0:0]"));
        line(&format!(":{INPUT} - [0:0]"));
        let mark = format!("-m comment --comment {}", self.mark());
        line(&format!(
            "-A {OUTPUT} -m owner --uid-owner {} {mark} -j RETURN",
            self.proxy_uid
        ));
        line(&format!("-A {OUTPUT} -o lo -j RETURN"));
        for network in &self.exclude_networks {
            if Family::of(network) == family {
                line(&format!("-A {OUTPUT} -d {} -j RETURN", network.trunc()));
            }
        }
        for range in self.exclude_outbound.ranges() {
            line(&format!(
                "-A {OUTPUT} -p tcp --dport {} -j RETURN",
                colon(range)
            ));
        }
        line(&format!(
            "-A {OUTPUT} -p tcp -j REDIRECT --to-ports {}",
            self.outbound_port
        ));
        let untouched = self.proxy_ports.ranges().iter();
        for range in untouched.chain(self.exclude_inbound.ranges()) {
            line(&format!(
                "-A {INPUT} -p tcp --dport {} -j RETURN",
                colon(range)
            ));
        }
        line(&format!(
            "-A {INPUT} -p tcp --dport {} -j RETURN",
            self.inbound_port
        ));
        line(&format!(
            "-A {INPUT} -p tcp -j REDIRECT --to-ports {}",
            self.inbound_port
        ));
        line("COMMIT");
        text
    }
}

/// For `nft -f`: also where there is no such table.
pub(crate) fn nftables_removal() -> String {
    format!("table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n")
}

/// Which addresses a set of iptables rules is for.
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

fn for_ports(ports: &Ports, line: &mut impl FnMut(&str)) {
    if !ports.is_empty() {
        let list = ports.to_string().replace(',', ", ");
        line(&format!("\t\ttcp dport {{ {list} }} return"));
    }
}

fn colon(range: &RangeInclusive<u16>) -> String {
    format!("{}:{}", range.start(), range.end())
}

/// In one line, for logs.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connections out of here go to port {}, connections to here to port {}; left alone: user {}, inbound ports {}",
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
    fn nftables_replaces_its_own_table_in_one_go() {
        let rules = rules();
        assert_eq!(
            rules.nftables(),
            format!(
                "table inet merlon {{
}}
delete table inet merlon
table inet merlon {{
\tcomment \"{}\"
\tchain output {{
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta skuid 7565 return
\t\toifname \"lo\" return
\t\tip daddr 10.7.0.0/16 return
\t\tip6 daddr fd00:7::/32 return
\t\ttcp dport {{ 5432, 9000-9010 }} return
\t\tmeta l4proto tcp redirect to :7560
\t}}
\tchain prerouting {{
\t\ttype nat hook prerouting priority -100; policy accept;
\t\ttcp dport {{ 7562, 7563 }} return
\t\ttcp dport {{ 22 }} return
\t\ttcp dport 7561 return
\t\tmeta l4proto tcp redirect to :7561
\t}}
}}
",
                rules.mark()
            )
        );
    }

    #[test]
    fn iptables_has_a_set_for_each_family() {
        let rules = rules();
        let mark = rules.mark();
        assert_eq!(
            rules.iptables(Family::V4),
            format!(
                "*nat
:MERLON_OUTPUT - [0:0]
:MERLON_INPUT - [0:0]
-A MERLON_OUTPUT -m owner --uid-owner 7565 -m comment --comment {mark} -j RETURN
-A MERLON_OUTPUT -o lo -j RETURN
-A MERLON_OUTPUT -d 10.7.0.0/16 -j RETURN
-A MERLON_OUTPUT -p tcp --dport 5432:5432 -j RETURN
-A MERLON_OUTPUT -p tcp --dport 9000:9010 -j RETURN
-A MERLON_OUTPUT -p tcp -j REDIRECT --to-ports 7560
-A MERLON_INPUT -p tcp --dport 7562:7562 -j RETURN
-A MERLON_INPUT -p tcp --dport 7563:7563 -j RETURN
-A MERLON_INPUT -p tcp --dport 22:22 -j RETURN
-A MERLON_INPUT -p tcp --dport 7561 -j RETURN
-A MERLON_INPUT -p tcp -j REDIRECT --to-ports 7561
COMMIT
"
            )
        );
        let v6 = rules.iptables(Family::V6);
        assert!(
            v6.contains("-d fd00:7::/32") && !v6.contains("10.7"),
            "{v6}"
        );
    }

    #[test]
    fn other_rules_have_another_mark() {
        let mut other = rules();
        other.exclude_outbound = Ports::default();
        assert_ne!(rules().mark(), other.mark());
        assert_eq!(rules().mark(), rules().mark());
    }
}
