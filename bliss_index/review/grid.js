"use strict";
// A grid of very many tiles, of which only those in sight exist.
// No element may be as high as ten million tiles. So the sheet is at most SHEET pixels high: a
// small step of the scroll bar moves by as many pixels, a large one goes to that share of all rows.
class Grid {
  static SHEET = 6e6;
  static GAP = 8;

  constructor(box, sheet, fill, empty) {
    this.box = box;
    this.sheet = sheet;
    this.fill = fill; // (tile, place): makes a tile show a place
    this.empty = empty; // (tile): a tile is no longer needed
    this.tiles = new Map();
    this.count = 0;
    this.top = 0; // pixels of all rows above the view
    this.offset = 0; // top minus the scroll bar's position
    this.seen = 0; // the scroll bar's position when it was last looked at
    box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.measure()).observe(box);
  }

  measure() {
    const first = this.firstInSight();
    const width = this.box.clientWidth - Grid.GAP;
    const least = width < 500 ? 150 : 180;
    this.columns = Math.max(1, Math.floor(width / least));
    this.width = Math.floor(width / this.columns);
    this.height = Math.round(this.width * 0.8) + 46;
    this.setHeight();
    this.tiles.forEach((tile) => this.drop(tile));
    this.tiles.clear();
    this.goTo(Math.floor(first / this.columns) * this.height);
  }

  setHeight() {
    this.rows = Math.ceil(this.count / this.columns);
    this.total = this.rows * this.height + Grid.GAP;
    this.real = Math.min(this.total, Grid.SHEET);
    this.sheet.style.height = `${this.real}px`;
  }

  firstInSight() {
    return this.columns ? Math.floor(this.top / this.height) * this.columns : 0;
  }

  show(count, place = 0) {
    this.count = count;
    this.tiles.forEach((tile) => this.drop(tile));
    this.tiles.clear();
    if (!this.columns) {
      this.measure();
    }
    this.setHeight();
    this.goTo(Math.floor(place / this.columns) * this.height);
  }

  // Both ends of the sheet are the ends of all rows; in between, an offset makes up the difference.
  goTo(top) {
    const sight = this.box.clientHeight;
    const most = Math.max(0, this.total - sight);
    this.top = Math.min(Math.max(0, top), most);
    const room = Math.max(0, this.real - sight);
    this.seen = this.real === this.total ? this.top : Math.round(most ? (this.top / most) * room : 0);
    this.offset = this.top - this.seen;
    this.box.scrollTop = this.seen;
    this.seen = this.box.scrollTop;
    this.offset = this.top - this.seen;
    this.draw();
  }

  scrolled() {
    const now = this.box.scrollTop;
    const moved = now - this.seen;
    if (!moved) {
      return;
    }
    const sight = this.box.clientHeight;
    const most = this.total - sight;
    const room = this.real - sight;
    const far = Math.abs(moved) > sight || now <= 0 || now >= room;
    if (this.real === this.total) {
      this.top = now;
    } else if (far) {
      this.top = (now / room) * most;
    } else {
      this.top = Math.min(Math.max(0, this.top + moved), most);
    }
    this.seen = now;
    this.offset = this.top - now;
    this.draw();
  }

  draw() {
    const sight = this.box.clientHeight;
    const first = Math.max(0, Math.floor(this.top / this.height) - 1) * this.columns;
    const last = Math.min(this.count, (Math.ceil((this.top + sight) / this.height) + 1) * this.columns);
    for (const [place, tile] of this.tiles) {
      if (place < first || place >= last) {
        this.drop(tile);
        this.tiles.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) {
      let tile = this.tiles.get(place);
      if (!tile) {
        tile = document.createElement("div");
        tile.className = "tile";
        tile.setAttribute("role", "gridcell");
        tile.style.width = `${this.width - Grid.GAP}px`;
        tile.style.height = `${this.height - Grid.GAP}px`;
        tile.dataset.place = place;
        this.tiles.set(place, tile);
        this.sheet.append(tile);
        this.fill(tile, place);
      }
      const x = Grid.GAP + (place % this.columns) * this.width;
      const y = Grid.GAP + Math.floor(place / this.columns) * this.height - this.offset;
      tile.style.transform = `translate(${x}px, ${y}px)`;
    }
  }

  drop(tile) {
    this.empty(tile);
    tile.remove();
  }

  refill() {
    this.tiles.forEach((tile, place) => this.fill(tile, place));
  }

  bringIntoSight(place) {
    const y = Math.floor(place / this.columns) * this.height;
    const sight = this.box.clientHeight;
    if (y < this.top) {
      this.goTo(y);
    } else if (y + this.height + Grid.GAP > this.top + sight) {
      this.goTo(y + this.height + Grid.GAP - sight);
    }
  }
}
