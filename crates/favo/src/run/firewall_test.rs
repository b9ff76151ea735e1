use super::*;

#[test]
fn rules_are_read_and_written() {
    for text in [
        "in",
        "out:tcp",
        "in:tcp:22",
        "out:udp:8000-8100",
        "in:icmp@network",
        "out:tcp:443@10.0.0.0/8",
        "in@fd00::/8",
    ] {
        assert_eq!(text.parse::<Traffic>().unwrap().to_string(), text);
    }
    let one: Traffic = "out@1.1.1.1".parse().unwrap();
    assert_eq!(one.to_string(), "out@1.1.1.1/32");
}

#[test]
fn nonsense_is_refused() {
    for text in [
        "",
        "tcp:22",
        "in:22",
        "in:sctp",
        "in:tcp:",
        "in:tcp:0",
        "in:tcp:9-8",
        "in:icmp:3",
        "out@",
        "out@lab",
        "in:tcp:1:2",
    ] {
        assert!(text.parse::<Traffic>().is_err(), "{text}");
    }
}

#[test]
fn an_allowed_connection_comes_before_what_is_denied() {
    let rules = |text: &str| vec![text.parse().unwrap()];
    let firewall = FirewallArgs {
        allow: rules("out:tcp:443"),
        deny: rules("out"),
    };
    let group = firewall.group().unwrap();
    let first = group.rules.iter().min_by_key(|rule| rule.priority).unwrap();
    assert_eq!(first.access, Access::Allow);
    let default = SecurityGroup::default();
    let defaults = default.rules.iter().map(|rule| rule.priority);
    assert!(defaults.min() > group.rules.iter().map(|rule| rule.priority).max());
    assert_eq!(firewall.first().as_deref(), Some("--allow out:tcp:443"));
}
