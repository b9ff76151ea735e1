# Runs in the guest: Postfix takes mail for the office, Dovecot hands it out.
set -eu
export DEBIAN_FRONTEND=noninteractive
echo "postfix postfix/main_mailer_type select Internet Site" | debconf-set-selections
echo "postfix postfix/mailname string office.example" | debconf-set-selections
apt-get update -q
apt-get install -q -y --no-install-recommends postfix dovecot-imapd
postconf -e 'mydestination = office.example, mail, localhost' 'home_mailbox = Maildir/' \
    'inet_interfaces = all' 'smtpd_tls_security_level = none'
printf 'mail_location = maildir:~/Maildir\ndisable_plaintext_auth = no\nssl = no\n' \
    >/etc/dovecot/conf.d/99-office.conf
id alice >/dev/null 2>&1 || useradd -m -s /usr/sbin/nologin alice
echo alice:honeycomb | chpasswd
systemctl restart postfix dovecot
