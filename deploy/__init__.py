"""What puts Tweetlake on a machine of its own: the AWS template, the release that it installs, and what installs it."""
