/* What a screen reader is told: now and then how far an answer has come, and the answer once it is whole. */

const CALM = 5000; // milliseconds between two sentences about the same answer, so that one is heard before the next

export class Announcer {
  /** @param region a polite live region */
  constructor(region) {
    this.region = region;
    this.timer = null;
  }

  /** Say a sentence; an empty one takes the last one back. */
  say(sentence) {
    this.region.textContent = sentence;
  }

  /** Tell of something that takes its time, from time to time, until it is said to be over; no sentence comes twice. */
  follow(progress) {
    this.over("");
    this.timer = setInterval(() => {
      const sentence = progress();
      if (sentence !== this.region.textContent) this.say(sentence);
    }, CALM);
  }

  /** What is to be heard in the end. */
  over(sentence) {
    clearInterval(this.timer);
    this.say(sentence);
  }
}
