use super::*;

#[test]
fn a_named_network_is_always_the_same_and_sound() {
    for name in ["", "a", "lab", "a-very-long-name-for-a-network"] {
        let network = Network::named(name, 1500);
        network.check().unwrap();
        assert_eq!(network, Network::named(name, 1500));
    }
    assert_ne!(Network::named("a", 1500).v4, Network::named("b", 1500).v4);
    assert_ne!(Network::named("a", 1500).v6, Network::named("b", 1500).v6);
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = Network::named("lab", 1500);
    let mut small = good.clone();
    small.mtu = 576;
    assert!(matches!(small.check(), Err(NetworkError::Mtu(_, 576))));

    let mut public = good.clone();
    public.v4.as_mut().unwrap().prefix = "8.8.8.0/24".parse().unwrap();
    assert!(matches!(public.check(), Err(NetworkError::Subnet4(..))));

    let mut elsewhere = good.clone();
    elsewhere.v4.as_mut().unwrap().gateway = "192.168.0.1".parse().unwrap();
    assert!(matches!(elsewhere.check(), Err(NetworkError::Gateway(..))));

    let mut wide = good;
    wide.v6.as_mut().unwrap().prefix = "fd00::/48".parse().unwrap();
    assert!(matches!(wide.check(), Err(NetworkError::Subnet6(..))));
}
